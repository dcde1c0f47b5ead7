"""What a store goes by, as a settings file."""

from __future__ import annotations

import math
import tomllib

from kvstate.config import load
from kvstate.config_text import text_in_force
from kvstate.settings import StoreSettings, TierSettings

RULES = {
    "hot_days": 1.5,
    "warm_days": 30,
    "cold_days": math.inf,
    "trash_days": 2,
    "floor_days": None,
    "sha256": True,
    "rules": ({"glob": "*/logs/**", "size_min": 10, "cold_days": math.inf},),
    "tenants": {"big co": {"hot_days": 0.5, "rules": [{"name": "tmp", "glob": "x"}]}},
}


def read_back(folder, text):
    (folder / "kvstate.toml").write_text(text, encoding="utf-8")
    return load(None, folder / "kvstate.toml", {}).store_settings()


def test_the_defaults_are_read_back_as_they_are(tmp_path):
    settings = StoreSettings()

    again = read_back(tmp_path, text_in_force(settings, settings.policy()))

    assert again == settings


def test_settings_and_rules_are_read_back_as_they_are(tmp_path):
    settings = StoreSettings(
        map_bytes=1 << 30,
        journal_age_seconds=90000.0,
        move_bytes_per_second=50 << 20,
        tiers=(
            TierSettings(path="/data/hot"),
            TierSettings(compression_level=1),
            TierSettings(path='rel"ative', free_bytes_min=0),
        ),
    )

    again = read_back(tmp_path, text_in_force(settings, RULES))

    assert again.tiers == settings.tiers
    assert (again.map_bytes, again.journal_age_seconds) == (1 << 30, 90000.0)
    assert (again.hot_days, again.cold_days) == (1.5, math.inf)
    assert again.rules["trash_days"] == 2
    assert again.rules["sha256"] is True
    assert again.rules["rules"][0]["cold_days"] == "never"
    assert again.rules["tenants"]["big co"]["rules"][0]["name"] == "tmp"


def test_what_is_not_set_is_left_out():
    found = tomllib.loads(text_in_force(StoreSettings(), {"floor_days": None}))

    assert "floor_days" not in found["lifecycle"]
    assert "tenants" not in found
