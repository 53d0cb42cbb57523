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
import math
import os
import re
import tomllib
from pathlib import Path
from typing import Final, Literal, get_args, get_type_hints

import msgspec

from jfs.memory import DEFAULT_MEMORY_BYTES, LEAST_MEMORY_BYTES
from replication.far_link import Compression
from replication.words import size

SiteName = Literal["primary", "sync", "async"]
SITE_NAMES: Final[tuple[SiteName, ...]] = ("primary", "sync", "async")

BLOCK_BYTES: Final = 4096
SMALLEST_VOLUME_BYTES: Final = 64 << 20
LARGEST_VOLUME_BYTES: Final = 1 << 62  # beyond it the offsets of a file end
SMALLEST_QUEUE_LIMIT_BYTES: Final = 1 << 20
LARGEST_QUEUE_LIMIT_BYTES: Final = 16 << 40  # the index is mapped into the address space of a process
SMALLEST_MEMORY_BYTES: Final = LEAST_MEMORY_BYTES
LARGEST_MEMORY_BYTES: Final = 1 << 40
SMALLEST_FAR_LIMIT: Final = 16 << 10  # less does not carry the questions of a copy in any useful time
LARGEST_FAR_LIMIT: Final = 1 << 40
LONGEST_SECONDS: Final = 86400.0
SHORTEST_SECONDS: Final = 0.05  # less than a thread may have to wait for its turn means nothing
LARGEST_FILE_BYTES: Final = 1 << 20  # of a configuration; not every file has an end
UNITS: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
SIZE_PATTERN: Final = re.compile(r"\s*([0-9]{1,20})\s*([A-Za-z]*)\s*")
HOST_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
FIELD_PATTERN: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$")
VALUE_WORDS: Final = {  # what msgspec calls the type of a value, for who writes it
    "bool": "true or false, without quotes",
    "int": "a whole number, without quotes",
    "float": "a number, without quotes",
    "str": "text in quotes",
    "object": "a table",
}
SIZE_WORDS: Final = 'a size, like "512MiB"'
NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


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
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    on_log_full: Literal["coarsen", "wait"] = "coarsen"
    silence_seconds: float = 5.0
    far_limit_bytes_per_second: int | None = None
    far_compression: Compression = "none"
    plain: bool = False
    busy_wait: bool = True


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

    def contradicts(self, size_bytes: int) -> str | None:
        """What to tell where the volume has another size than this file says; None: they agree."""
        if size_bytes == self.volume.size_bytes:
            return None
        return (
            f"the volume has {size(size_bytes)} since mkfs and keeps that size, while volume.size in "
            f"{self.path} says {size(self.volume.size_bytes)}; put {size_text(size_bytes)} back there, "
            "nothing else is wrong"
        )


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
    memory_bytes: str | int = DEFAULT_MEMORY_BYTES
    on_log_full: Literal["coarsen", "wait"] = "coarsen"
    silence_seconds: float = 5.0
    far_limit_bytes_per_second: str | int | None = None
    far_compression: Compression = "none"
    plain: bool = False
    busy_wait: bool = True


class _RawSites(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    primary: _RawSite
    sync: _RawSite
    async_: _RawSite = msgspec.field(name="async")


class _RawConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    volume: _RawVolume
    sites: _RawSites
    keys: str = "keys"
    options: _RawOptions = msgspec.field(default_factory=_RawOptions)


def size_text(count: int) -> str:
    """A size as `parse_size` reads it, exactly."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count % UNITS[unit.upper()] == 0:
            return f'"{count // UNITS[unit.upper()]}{unit}"'
    return f'"{count}"'


def parse_size(text: str | int) -> int:
    """A size in bytes from "8GiB", "512 MiB", "1048576" or a number; ConfigurationError otherwise."""
    if isinstance(text, int):
        if text <= 0:
            raise ConfigurationError(f"a size must be more than nothing, and {text} is not")
        return text
    match = SIZE_PATTERN.fullmatch(text)
    if match is None or match[2].upper() not in UNITS or int(match[1]) == 0:
        raise ConfigurationError(f"{text!r} is not a size; write it like 8GiB, 512MiB or 1048576")
    return int(match[1]) * UNITS[match[2].upper()]


def load(path: Path) -> Config:
    """Read and check the configuration in `path`; every fault is one ConfigurationError sentence."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigurationError(
            f"the configuration {path} cannot be read: {error.strerror}; "
            "name it with -c FILE or TRISITE_CONFIG, or make one with `trisite init DIR`"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the configuration {path} is not UTF-8 text") from error
    if len(data) > LARGEST_FILE_BYTES:
        raise ConfigurationError(f"{path} is no configuration: it is larger than 1 MiB")
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
        raise ConfigurationError(_field_sentence(str(error))) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets without end
        raise ConfigurationError(f"it is not TOML that can be read: {error}") from error
    base = path.absolute().parent
    limit = raw.options.far_limit_bytes_per_second
    config = Config(
        path=path.absolute(),
        volume=VolumeConfig(name=raw.volume.name, size_bytes=_size_of("volume.size", raw.volume.size)),
        sites={
            name: SiteConfig(directory=base / site.directory, host=site.host, port=site.port)
            for name, site in zip(SITE_NAMES, msgspec.structs.astuple(raw.sites), strict=True)
        },
        keys=base / raw.keys,
        options=Options(
            protect=raw.options.protect,
            protect_timeout_seconds=raw.options.protect_timeout_seconds,
            complete=raw.options.complete,
            queue_limit_bytes=_size_of("queue_limit_bytes", raw.options.queue_limit_bytes),
            memory_bytes=_size_of("memory_bytes", raw.options.memory_bytes),
            on_log_full=raw.options.on_log_full,
            silence_seconds=raw.options.silence_seconds,
            far_limit_bytes_per_second=(
                None if limit is None else _size_of("far_limit_bytes_per_second", limit)
            ),
            far_compression=raw.options.far_compression,
            plain=raw.options.plain,
            busy_wait=raw.options.busy_wait,
        ),
    )
    check(config)
    return config


def _size_of(key: str, text: str | int) -> int:
    """`parse_size` of the value of `key`, which a refusal names."""
    try:
        return parse_size(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}: {error}") from error


def _field_sentence(text: str) -> str:
    """What msgspec found wrong, in the words of the file: the key first, as `table.key`."""
    match = FIELD_PATTERN.match(text)
    what, where = (match["what"], match["where"] or "") if match is not None else (text, "")
    table = f"in [{where}]" if where else "at the top"
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        return f"there is no key {found[1]!r} {table}; remove it or correct its name (docs/operations.md)"
    if found := re.fullmatch(r"Object missing required field `(.*)`", what):
        if where == "sites":
            return f"site {found[1]} is missing; a volume needs {', '.join(SITE_NAMES)}"
        return f"the key {found[1]!r} {table} is missing; add it (docs/operations.md)"
    if found := re.fullmatch(r"Invalid enum value (.*)", what):
        hint = get_type_hints(_RawOptions)[where.removeprefix("options.")]  # only options have choices
        return f"{where} must be {' or '.join(map(repr, get_args(hint)))}, and {found[1]} is neither"
    if found := re.fullmatch(r"Expected `(.*)`, got `.*`", what):
        wanted = SIZE_WORDS if "|" in found[1] else VALUE_WORDS.get(found[1], found[1])
        return f"{where} must be {wanted}; correct it (docs/operations.md)"
    return f"{where}: {what}; correct its value (docs/operations.md)"


def check(config: Config) -> None:
    """Refuse what contradicts itself, in one ConfigurationError sentence."""
    _check_volume(config.volume)
    _check_sites(config)
    if "\0" in str(config.keys):
        raise ConfigurationError("keys is no directory name; it holds a NUL character")
    options = config.options
    for name in ("protect_timeout_seconds", "silence_seconds"):
        seconds = getattr(options, name)
        if math.isnan(seconds) or not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
            raise ConfigurationError(
                f"{name} must be from {SHORTEST_SECONDS:g} to {LONGEST_SECONDS:.0f} seconds, not {seconds:g}"
            )
    if not SMALLEST_QUEUE_LIMIT_BYTES <= options.queue_limit_bytes <= LARGEST_QUEUE_LIMIT_BYTES:
        raise ConfigurationError("queue_limit_bytes must be from 1MiB to 16TiB")
    if not SMALLEST_MEMORY_BYTES <= options.memory_bytes <= LARGEST_MEMORY_BYTES:
        raise ConfigurationError("memory_bytes must be from 128MiB to 1TiB")
    limit = options.far_limit_bytes_per_second
    if limit is not None and not SMALLEST_FAR_LIMIT <= limit <= LARGEST_FAR_LIMIT:
        raise ConfigurationError(
            "far_limit_bytes_per_second must be from 16KiB to 1TiB; leave it out for no limit"
        )
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
    if not NAME_PATTERN.fullmatch(volume.name):
        raise ConfigurationError(
            f"{volume.name!r} is no volume name; use letters, digits, '.', '_' and '-', at most 63"
        )
    if volume.size_bytes % BLOCK_BYTES:
        raise ConfigurationError(f"the size of the volume must be a multiple of {BLOCK_BYTES} bytes")
    if volume.size_bytes < SMALLEST_VOLUME_BYTES:
        raise ConfigurationError(
            f"a volume needs at least {SMALLEST_VOLUME_BYTES >> 20} MiB, not {size(volume.size_bytes)}"
        )
    if volume.size_bytes > LARGEST_VOLUME_BYTES:
        raise ConfigurationError(f"a volume has at most {LARGEST_VOLUME_BYTES >> 40} TiB; make it smaller")


def _check_sites(config: Config) -> None:
    addresses: dict[tuple[str, int], str] = {}
    directories: dict[Path, str] = {}
    for name, site in config.sites.items():
        if not 1 <= site.port <= 65535:
            raise ConfigurationError(f"the port of site {name} must be from 1 to 65535, not {site.port}")
        _check_host(name, site.host)
        if (other := addresses.setdefault((site.host, site.port), name)) != name:
            raise ConfigurationError(f"sites {other} and {name} both listen at {site.host}:{site.port}")
        if "\0" in str(site.directory):
            raise ConfigurationError(f"the directory of site {name} is no name; it holds a NUL character")
        real = Path(os.path.realpath(site.directory))  # also a way round by a link or `..` is the same one
        for directory, owner in directories.items():
            if real.is_relative_to(directory) or directory.is_relative_to(real):
                raise ConfigurationError(
                    f"sites {owner} and {name} share the directory {real}; each needs its own"
                )
        directories[real] = name


def _check_host(name: str, host: str) -> None:
    """A name or an address, as far as that can be seen without asking for it."""
    if len(host) <= 253 and HOST_PATTERN.fullmatch(host):
        return
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise ConfigurationError(
            f"the host of site {name} is neither a host name nor an address: {host[:80]!r}"
        ) from error
