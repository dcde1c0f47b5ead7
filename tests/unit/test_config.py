"""The settings file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kvstate.config import SECTIONS, load
from kvstate.errors import InvalidConfig, InvalidValue
from kvstate.policy import Policy
from kvstate.settings import StoreSettings, TierSettings, tier_paths
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


def test_rules_and_tenants(tmp_path):
    text = """
[lifecycle]
cold_days = "never"
trash_days = 7
rate = "50MiB"

[[lifecycle.rules]]
name = "logs"
glob = "**/*.log"
cold_days = 14

[tenants.vip]
hot_days = 14
sha256 = true

[[tenants.vip.rules]]
prefix = "vip/keep/"
cold_days = "never"
"""
    config = _load(tmp_path, text)

    settings = config.store_settings()
    policy = Policy.of(settings.policy())
    assert settings.move_bytes_per_second == 50 << 20
    assert (policy.common.cold_days, policy.common.trash_days) == (math.inf, 7)
    assert [rule.name for rule in policy.section("vip/x").rules] == ["1", "logs"]
    assert policy.section("vip/x").hot_days == 14
    assert policy.section("vip/x").sha256


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("[[lifecycle.rules]]\nname = 'a'\n[[lifecycle.rules]]\nglobb = 'x'\n", 4, "globb"),
        ("[[lifecycle.rules]]\nsize_min = 'many'\n", 2, "no number of bytes"),
        ("[tenants.a]\nhot_days = -1\n", 2, "no number of days"),
        ("[tenants.a]\n\nhot = 1\n", 3, "none of"),
        ("[[tenants.a.rules]]\nbasis = 'x'\n", 2, "neither"),
        ("[lifecycle]\nrules = 5\n", 2, "no list"),
        ("tenants = 5\n", 1, "no table"),
        ("[lifecycle]\nhot_days = 'soon'\n", 2, "never"),
        ("[lifecycle]\ntrash_days = -1\n", 2, "trash_days"),
        ("[lifecycle]\nthreads = 0\n", 2, "threads"),
    ],
)
def test_rules_that_cannot_be_name_their_line(tmp_path, text, line, why):
    with pytest.raises(InvalidConfig, match=why) as caught:
        _load(tmp_path, text)

    assert f"kvstate.toml:{line}" in str(caught.value)


def test_each_tier_has_settings_of_its_own(tmp_path):
    text = """
[tiers.warm]
compression = "zstd"
free_min = 5

[tiers.cold]
path = "/mnt/archive/kvstate"
compression = "zstd:9"
free_min = "1GiB"
"""
    environ = {"KVSTATE_TIERS_HOT_PATH": "fast", "KVSTATE_TIERS_WARM_FREE_MIN": "1MiB"}
    config = _load(tmp_path, text, environ)

    assert config.store_settings().tiers == (
        TierSettings(path="fast"),
        TierSettings(compression_level=3, free_bytes_min=1 << 20),
        TierSettings(path="/mnt/archive/kvstate", compression_level=9, free_bytes_min=1 << 30),
    )
    assert config.origins["tiers.cold.path"] == f"{tmp_path}/kvstate.toml:7"
    assert config.origins["tiers.warm.free_min"] == "$KVSTATE_TIERS_WARM_FREE_MIN"
    assert config.as_dict()["tiers.cold"]["compression"] == "zstd:9"


def test_a_relative_path_starts_in_the_store(tmp_path):
    tiers = (TierSettings(), TierSettings(path="../warm"), TierSettings(path="/c//d"))

    assert tier_paths(tmp_path / "store", tiers) == (
        tmp_path / "store/tiers/hot",
        tmp_path / "warm",
        Path("/c/d"),
    )


def test_two_tiers_in_one_folder_are_seen_through_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    text = f"[tiers.warm]\npath = '{tmp_path}/disk/x'\n[tiers.cold]\npath = '{tmp_path}/link/x'\n"

    with pytest.raises(InvalidConfig, match=r"tiers.warm.path \(.*:2\), tiers.cold.path \(.*:4\)"):
        _load(tmp_path, text)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"path": "s3://bucket"}, "object stores"),
        ({"path": ""}, "no path"),
        ({"path": "a\0b"}, "no path"),
        ({"compression_level": 20}, "between 1 and 19"),
        ({"compression_level": 0}, "between 1 and 19"),
        ({"free_bytes_min": -1}, "not between 0"),
    ],
)
def test_a_tiers_settings_refuse_what_cannot_work(options, why):
    with pytest.raises(InvalidConfig, match=why):
        TierSettings(**options)


def test_settings_with_two_tiers_in_one_folder_are_refused():
    with pytest.raises(InvalidConfig, match="overlap"):
        StoreSettings(tiers=(TierSettings(path="/a"), TierSettings(path="/a/b"), TierSettings()))


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
        ("[tiers.frozen]\n", 1, r"unknown section \[tiers.frozen\]; did you mean tiers."),
        ("[tiers]\nfrozen = {}\n", 2, "unknown section"),
        ("tiers = 5\n", 1, "unknown section"),
        ("[tiers]\ncold = 5\n", 2, "must be a section"),
        ("[store]\n[tiers.cold]\npaht = '/x'\n", 3, "unknown key tiers.cold.paht; did you mean"),
        (
            "[tiers.hot]\npath = '/a'\n[tiers.cold]\npath = 5\n",
            4,
            "tiers.cold.path: Expected `str`",
        ),
        ("[tiers.cold]\nfree_min = '1 parsec'\n", 2, "no number of bytes"),
        ("[tiers.cold]\nfree_min = -1\n", 2, "tiers.cold.free_min: -1 is not between"),
        ("[tiers.cold]\ncompression = 'zstd:20'\n", 2, "neither 'none' nor 'zstd'"),
        ("[tiers.warm]\ncompression = 'gzip'\n", 2, "tiers.warm.compression: .*'gzip' is neither"),
        ("[tiers.cold]\ncompression = 9\n", 2, "Expected `str`"),
        (
            "[tiers.cold]\npath = 's3://bucket/x'\n",
            2,
            "not available in this version; give",
        ),
        ("tiers.cold.path = 'https://host/x'\n", 1, "object stores"),
        ("[tiers]\ncold.path = 'gs://bucket'\n", 2, "object stores"),
        ("\n[tiers]\ncold = { path = 'azure://x' }\n", 3, "object stores"),
        ("[tiers.warm]\npath = '/x'\n[tiers.cold]\npath = '/x/'\n", 4, "one or overlap"),
        ("[tiers.warm]\npath = '/x'\n[tiers.cold]\npath = '/x/y/../z'\n", 2, "one or overlap"),
        ("[tiers.cold]\npath = 'tiers/hot/cold'\n", 2, "one or overlap"),
        ("[tiers.cold]\npath = 'records/cold'\n", 2, "the records"),
        ("[tiers.cold]\npath = '.'\n", 2, "the store's own folder"),
        ("[tiers.cold]\npath = '..'\n", 2, "the store's own folder"),
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
        ("HOT_RETENTION_DAYS", "soon", "never"),
        ("KVSTATE_TIERS_COLD_PATHS", "/x", "unknown key tiers.cold.paths; did you mean path"),
        ("KVSTATE_TIERS_FROZEN_PATH", "/x", "unknown section"),
        ("KVSTATE_TIERS_COLD_PATH", "s3://bucket", "object stores"),
        ("KVSTATE_TIERS_COLD_PATH", "tiers/warm", "overlap"),
        ("KVSTATE_TIERS_COLD_FREE_MIN", "lots", "no number of bytes"),
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
