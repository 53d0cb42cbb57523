"""The configuration is checked whole, and every fault is one sentence."""

from pathlib import Path

import pytest

from replication.config import ConfigurationError, load, parse, parse_size

GOOD = """
[volume]
name = "home"
size = "8GiB"
[sites.primary]
directory = "primary"
port = 7001
[sites.sync]
directory = "sync"
port = 7002
[sites.async]
directory = "async"
host = "127.0.0.1"
port = 7003
"""


def test_defaults_are_the_safe_ones(tmp_path: Path) -> None:
    config = parse(GOOD, tmp_path / "trisite.toml")
    assert config.volume.size_bytes == 8 << 30
    assert config.options.protect
    assert config.options.complete == "durable"
    assert config.sites["async"].directory == tmp_path / "async"
    assert config.keys == tmp_path / "keys"


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 << 30), ("512 MiB", 512 << 20), ("4096", 4096), (4096, 4096), ("1tib", 1 << 40)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "8GB", "-1", "0", 0, -5, "8.5GiB", "GiB"])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(ConfigurationError):
        parse_size(text)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("port = 7002", "port = 7001", "both listen"),
        ('directory = "sync"', 'directory = "primary"', "share the directory"),
        ('directory = "sync"', 'directory = "primary/inside"', "share the directory"),
        ("[sites.async]", "[sites.far]", "far"),
        ("port = 7003", "port = 70030", "from 1 to 65535"),
        ("8GiB", "8GB", "not a size"),
        ("8GiB", "4097", "multiple of 4096"),
        ("8GiB", "8MiB", "at least 64 MiB"),
        ('"home"', '"../home"', "no volume name"),
        ("[volume]", "surprise = 1\n[volume]", "surprise"),
        ("port = 7003", "port = 7003\n[options]\nprotekt = true", "protekt"),
        ("port = 7003", "port = 7003\n[options]\nsilence_seconds = 0", "seconds must be from"),
        ("port = 7003", "port = 7003\n[options]\nmemory_bytes = '64MiB'", "from 128MiB to 1TiB"),
        ("port = 7003", "port = 7003\n[options]\nsilence_seconds = nan", "seconds must be from"),
        ("port = 7003", "port = 7003\n[options]\nprotect_timeout_seconds = inf", "seconds must be from"),
        ("port = 7003", "port = 7003\n[options]\nprotect_timeout_seconds = 1e300", "seconds must be from"),
        ("port = 7003", "port = 7003\n[options]\nqueue_limit_bytes = '99999TiB'", "from 1MiB to 16TiB"),
        ("port = 7003", "port = 7003\n[options]\nfar_compression = 'gzip'", "must be 'none' or 'zstd'"),
        (
            "port = 7003",
            "port = 7003\n[options]\nfar_limit_bytes_per_second = '2MB'",
            "second: '2MB' is not a size",
        ),
        ("port = 7003", "port = 7003\n[options]\nfar_limit_bytes_per_second = 0", "more than nothing"),
        ("port = 7003", "port = 7003\n[options]\nfar_limit_bytes_per_second = 4096", "from 16KiB to 1TiB"),
        ("port = 7003", "port = 7003\n[options]\nfar_limit_bytes_per_second = 1.5", "far_limit_bytes_per_s"),
        ("port = 7003", "port = 7003\n[options]\nfoo = 1", r"no key .foo. in .options."),
        ("port = 7003", "port = 'x'", "sites.async.port must be a whole number"),
        ("port = 7003", "port = 7003\n[options]\nprotect = 'yes'", "options.protect must be true or false"),
        (
            "port = 7003",
            "port = 7003\n[options]\nqueue_limit_bytes = true",
            "queue_limit_bytes must be a size",
        ),
        ("port = 7003", "port = 7003\n[options]\nqueue_limit_bytes = 0", "queue_limit_bytes: a size must"),
        (
            "port = 7003",
            "port = 7003\n[options]\nmemory_bytes = 'much'",
            "memory_bytes: 'much' is not a size",
        ),
        ('"8GiB"', '"big"', "volume.size: 'big' is not a size"),
        ("8GiB", "99999999TiB", "at most"),
        ("8GiB", "9" * 5000, "not a size"),
        ('"8GiB"', "9" * 5000, "not TOML"),
        ("[volume]", "a = " + "[" * 100_000 + "\n[volume]", "not TOML"),
        ('"home"', '"home\\n"', "no volume name"),
        ('"127.0.0.1"', '"a..b"', "neither a host name nor an address"),
        ('"127.0.0.1"', f'"{"a" * 300}.example"', "neither a host name nor an address"),
        ('"127.0.0.1"', '"no such host"', "neither a host name nor an address"),
        ('"127.0.0.1"', '""', "neither a host name nor an address"),
        ('directory = "sync"', 'directory = "x/../primary"', "share the directory"),
        ('directory = "sync"', 'directory = "s\\u0000"', "NUL character"),
        ("port = 7003", "port = 7003\n[options]\nqueue_limit_bytes = 10", "from 1MiB"),
        ("port = 7003", 'port = 7003\n[options]\ncomplete = "never"', "never"),
        ('host = "127.0.0.1"', 'host = "10.0.0.1"', "only allowed on loopback"),
        ("[volume]", "[volume", "not TOML"),
    ],
)
def test_contradictions_are_refused_in_one_sentence(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new)
    if "10.0.0.1" in new:
        text += "[options]\nplain = true\n"
    path = tmp_path / "trisite.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_site_less_volume_is_refused(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("[sites.async]")]
    with pytest.raises(ConfigurationError, match="site async is missing"):
        parse(text, tmp_path / "trisite.toml")


def test_a_file_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="trisite init"):
        load(tmp_path / "none.toml")


def test_what_is_no_text_file_is_refused_without_reading_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="larger than 1 MiB"):
        load(Path("/dev/zero"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load(tmp_path / "binary")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        load(tmp_path)


def test_a_directory_that_is_a_link_to_another_sites_is_refused(tmp_path: Path) -> None:
    (tmp_path / "primary").mkdir()
    (tmp_path / "sync").symlink_to("primary")
    with pytest.raises(ConfigurationError, match="share the directory"):
        parse(GOOD, tmp_path / "trisite.toml")
