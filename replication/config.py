"""The configuration of a volume: read from one TOML file, checked whole before anything is done with it.

```toml
keys = "keys"                # directory of the certificates, relative to this file
[volume]
name = "home"
size = "8GiB"
[sites.primary]              # and sites.sync, sites.async
directory = "primary"        # relative to this file
host = "127.0.0.1"
port = 7001
[options]                    # all of them may be left out
protect = true
```
"""

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Final, Literal

import msgspec

SiteName = Literal["primary", "sync", "async"]
SITE_NAMES: Final[tuple[SiteName, ...]] = ("primary", "sync", "async")

BLOCK_BYTES: Final = 4096
SMALLEST_VOLUME_BYTES: Final = 64 << 20
SMALLEST_QUEUE_LIMIT_BYTES: Final = 1 << 20
UNITS: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
SIZE_PATTERN: Final = re.compile(r"^\s*(\d+)\s*([A-Za-z]*)\s*$")
NAME_PATTERN: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


class ConfigurationError(Exception):
    """The configuration cannot be used; the argument is one sentence for the operator."""


class VolumeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The volume: its name and its size in bytes, a multiple of 4096."""

    name: str
    size_bytes: int


class SiteConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where a site keeps its data and where its daemon listens."""

    directory: Path
    host: str
    port: int


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may choose; the defaults are the safe ones (design, sections 3 and 6)."""

    protect: bool = True
    protect_timeout_seconds: float = 10.0
    complete: Literal["durable", "received"] = "durable"
    queue_limit_bytes: int = 4 << 30
    on_log_full: Literal["coarsen", "wait"] = "coarsen"
    silence_seconds: float = 5.0
    plain: bool = False


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A checked configuration; `path` is the file it came from, every other path is absolute."""

    path: Path
    volume: VolumeConfig
    sites: dict[SiteName, SiteConfig]
    keys: Path
    options: Options

    def site(self, name: str) -> SiteConfig:
        """The site of that name; ConfigurationError if there is none."""
        if name not in self.sites:
            raise ConfigurationError(
                f"there is no site {name!r} in {self.path}; the sites are {', '.join(self.sites)}"
            )
        return self.sites[name]


class _RawVolume(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    size: str | int


class _RawSite(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    directory: str
    host: str = "127.0.0.1"
    port: int


class _RawOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    protect: bool = True
    protect_timeout_seconds: float = 10.0
    complete: Literal["durable", "received"] = "durable"
    queue_limit_bytes: str | int = 4 << 30
    on_log_full: Literal["coarsen", "wait"] = "coarsen"
    silence_seconds: float = 5.0
    plain: bool = False


class _RawConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    volume: _RawVolume
    sites: dict[SiteName, _RawSite]
    keys: str = "keys"
    options: _RawOptions = msgspec.field(default_factory=_RawOptions)


def parse_size(text: str | int) -> int:
    """A size in bytes from "8GiB", "512 MiB", "1048576" or a number; ConfigurationError otherwise."""
    if isinstance(text, int):
        if text <= 0:
            raise ConfigurationError(f"a size must be more than nothing, and {text} is not")
        return text
    match = SIZE_PATTERN.match(text)
    if match is None or match[2].upper() not in UNITS or int(match[1]) == 0:
        raise ConfigurationError(f"{text!r} is not a size; write it like 8GiB, 512MiB or 1048576")
    return int(match[1]) * UNITS[match[2].upper()]


def load(path: Path) -> Config:
    """Read and check the configuration in `path`; every fault is one ConfigurationError sentence."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"the configuration {path} cannot be read: {error.strerror}; "
            "name it with -c FILE or TRISITE_CONFIG, or make one with `trisite init DIR`"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the configuration {path} is not UTF-8 text") from error
    try:
        return parse(text, path)
    except ConfigurationError as error:
        raise ConfigurationError(f"the configuration {path} cannot be used: {error}") from error


def parse(text: str, path: Path) -> Config:
    """The checked configuration in `text`; relative paths are taken from the directory of `path`."""
    try:
        raw = msgspec.convert(tomllib.loads(text), _RawConfig)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"it is not TOML, {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigurationError(str(error)) from error
    base = path.absolute().parent
    config = Config(
        path=path.absolute(),
        volume=VolumeConfig(name=raw.volume.name, size_bytes=parse_size(raw.volume.size)),
        sites={
            name: SiteConfig(directory=base / site.directory, host=site.host, port=site.port)
            for name, site in raw.sites.items()
        },
        keys=base / raw.keys,
        options=Options(
            protect=raw.options.protect,
            protect_timeout_seconds=raw.options.protect_timeout_seconds,
            complete=raw.options.complete,
            queue_limit_bytes=parse_size(raw.options.queue_limit_bytes),
            on_log_full=raw.options.on_log_full,
            silence_seconds=raw.options.silence_seconds,
            plain=raw.options.plain,
        ),
    )
    check(config)
    return config


def check(config: Config) -> None:
    """Refuse what contradicts itself, in one ConfigurationError sentence."""
    _check_volume(config.volume)
    _check_sites(config)
    options = config.options
    if options.protect_timeout_seconds <= 0 or options.silence_seconds <= 0:
        raise ConfigurationError("protect_timeout_seconds and silence_seconds must be more than 0")
    if options.queue_limit_bytes < SMALLEST_QUEUE_LIMIT_BYTES:
        raise ConfigurationError("queue_limit_bytes must be at least 1MiB")
    if options.plain:
        for name, site in config.sites.items():
            if not is_loopback(site.host):
                raise ConfigurationError(
                    f"plain = true sends data without TLS, which is only allowed on loopback, "
                    f"and site {name} is at {site.host}"
                )


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_volume(volume: VolumeConfig) -> None:
    if not NAME_PATTERN.match(volume.name):
        raise ConfigurationError(
            f"{volume.name!r} is no volume name; use letters, digits, '.', '_' and '-', at most 63"
        )
    if volume.size_bytes % BLOCK_BYTES:
        raise ConfigurationError(f"the size of the volume must be a multiple of {BLOCK_BYTES} bytes")
    if volume.size_bytes < SMALLEST_VOLUME_BYTES:
        raise ConfigurationError(
            f"a volume needs at least {SMALLEST_VOLUME_BYTES >> 20} MiB, not {volume.size_bytes} bytes"
        )


def _check_sites(config: Config) -> None:
    missing = [name for name in SITE_NAMES if name not in config.sites]
    if missing:
        raise ConfigurationError(f"site {missing[0]} is missing; a volume needs primary, sync and async")
    addresses: dict[tuple[str, int], str] = {}
    directories: dict[Path, str] = {}
    for name, site in config.sites.items():
        if not 1 <= site.port <= 65535:
            raise ConfigurationError(f"the port of site {name} must be from 1 to 65535, not {site.port}")
        if not site.host:
            raise ConfigurationError(f"the host of site {name} is empty")
        if (other := addresses.setdefault((site.host, site.port), name)) != name:
            raise ConfigurationError(f"sites {other} and {name} both listen at {site.host}:{site.port}")
        for directory, owner in directories.items():
            if site.directory.is_relative_to(directory) or directory.is_relative_to(site.directory):
                raise ConfigurationError(
                    f"sites {owner} and {name} share the directory {site.directory}; each needs its own"
                )
        directories[site.directory] = name
