"""The settings file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstate.config import SECTIONS, load
from kvstate.errors import InvalidConfig, InvalidValue
from kvstate.settings import StoreSettings
from kvstate.sizes import format_size, parse_size
from kvstate.store import open_store


def _load(tmp_path, text, environ=None):
    (tmp_path / "kvstate.toml").write_text(text)
    return load(tmp_path, None, environ or {})


def test_without_a_file_the_defaults_hold():
    config = load(None, None, {})

    assert config.store_settings() == StoreSettings()
    assert config.daemon.socket_mode == 0o600
    assert set(config.origins.values()) == {"default"}


def test_a_file_an_override_and_their_origins(tmp_path):
    text = '[store]\nmap_bytes = "1GiB"\n\n[lifecycle]\nhot_days = 1\nwarm_days = 2.5\n'
    config = _load(tmp_path, text, {"KVSTATE_LIFECYCLE_HOT_DAYS": "2", "KVSTATE_SOCKET": "/x"})

    assert config.store_settings().map_bytes == 1 << 30
    assert (config.lifecycle.hot_days, config.lifecycle.warm_days) == (2, 2.5)
    assert config.origins["store.map_bytes"] == f"{tmp_path}/kvstate.toml:2"
    assert config.origins["lifecycle.warm_days"] == f"{tmp_path}/kvstate.toml:6"
    assert config.origins["lifecycle.hot_days"] == "$KVSTATE_LIFECYCLE_HOT_DAYS"
    assert config.origins["lifecycle.cold_days"] == "default"


def test_the_retention_variables_set_the_ages():
    environ = {"HOT_RETENTION_DAYS": "1", "WARM_RETENTION_DAYS": "2", "COLD_RETENTION_DAYS": "3"}

    settings = load(None, None, environ).store_settings()

    assert (settings.hot_days, settings.warm_days, settings.cold_days) == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("[stor]\n", 1, "did you mean store"),
        ("[store]\n\nmap_byte = 1\n", 3, "did you mean map_bytes"),
        ("[store]\nnonsense = 1\n", 2, "known are map_bytes"),
        ("[store]\nreaders_max = 'many'\n", 2, "Expected `int`"),
        ("[store]\nmap_bytes = '1 parsec'\n", 2, "no number of bytes"),
        ("store = 5\n", 1, r"must be a section"),
        ("[journal]\nage_days = true\n", 2, "Expected `float`"),
        ("[daemon]\nsocket_mode = '0999'\n", 2, "octal"),
        ("[daemon]\nconnections_max = 0\n", 2, "not between"),
        ("[lifecycle]\nhot_days = 40\n", 2, "increase"),
        ("[lifecycle\n", 1, "line 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, line, why):
    with pytest.raises(InvalidConfig, match=why) as caught:
        _load(tmp_path, text)

    assert f"kvstate.toml:{line}" in str(caught.value) or "line 1" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("KVSTATE_STORE_MAPBYTES", "1", "did you mean map_bytes"),
        ("KVSTATE_STORE_READERS_MAX", "x", "Expected `int`"),
        ("HOT_RETENTION_DAYS", "soon", "Expected `float`"),
    ],
)
def test_a_wrong_override_is_named(variable, value, why):
    with pytest.raises(InvalidConfig, match=why) as caught:
        load(None, None, {variable: value})

    assert f"${variable}" in str(caught.value)


def test_a_named_file_must_be_there_and_be_text(tmp_path):
    with pytest.raises(InvalidConfig, match="No such file"):
        load(None, tmp_path / "none.toml", {})
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig, match="UTF-8"):
        load(None, tmp_path / "bytes.toml", {})


def test_a_store_follows_its_own_file(tmp_path, clock):
    open_store(tmp_path).close()
    (tmp_path / "kvstate.toml").write_text("[lifecycle]\nhot_days = 1\n")

    with open_store(tmp_path, clock=clock) as store:
        store.artifacts.put("t/w/a", b"x")
        clock.advance(days=1)
        assert store.lifecycle.run().promoted_to_warm == 1


def test_a_store_with_a_wrong_file_is_not_opened(tmp_path):
    open_store(tmp_path).close()
    (tmp_path / "kvstate.toml").write_text("[lifecycle]\nhot = 1\n")

    with pytest.raises(InvalidConfig, match=r"kvstate\.toml:2"):
        open_store(tmp_path)


def test_every_key_is_explained():
    page = (Path(__file__).parents[2] / "docs/configuration.md").read_text()

    for section, kind in SECTIONS.items():
        assert f"[{section}]" in page
        for key in kind.__struct_fields__:
            assert f"`{key}`" in page


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("65536", 65536), ("64KiB", 65536), ("1.5GB", 1_500_000_000)]
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1 mile", "1kib", "٣", "1e9", "9" * 30])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InvalidValue):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (5 << 40, "5 TiB")]
)
def test_sizes_are_shown(size, text):
    assert format_size(size) == text
