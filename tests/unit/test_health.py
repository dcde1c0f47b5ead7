"""What a store says is wrong with it."""

from __future__ import annotations

import json
import shutil

import pytest

from kvstate.errors import Unavailable
from kvstate.health import health_of, health_text, troubles_in
from kvstate.settings import StoreSettings, TierSettings
from tests.harness import wait_for


@pytest.fixture
def stats(store):
    return store.stats()


def what_is_wrong(stats):
    return [trouble.what for trouble in troubles_in(stats)]


def test_a_new_store_is_well(store):
    found = health_of(store)

    assert (found.status, found.troubles) == ("ok", ())


def test_the_text_is_json_and_its_first_line_says_it_all(store):
    text = health_text(health_of(store))

    assert text.splitlines()[0] == b'{"status": "ok", "says": "nothing is wrong",'
    assert json.loads(text) == {
        "status": "ok",
        "says": "nothing is wrong",
        "problems": [],
        "read_only": False,
        "revision": store.revision(),
    }


@pytest.mark.parametrize(
    ("figures", "what"),
    [
        ({"records_bytes": 95, "records_free_bytes": 0, "map_bytes": 100}, "map"),
        ({"readers": 1020, "readers_max": 1024}, "readers"),
        ({"damaged": {"blobs": 1, "artifacts": ["a"]}}, "damage"),
        ({"failed": 3}, "lifecycle"),
        ({"last_run": {"errors": 2}}, "lifecycle"),
    ],
)
def test_a_figure_that_is_wrong_is_a_problem(stats, figures, what):
    assert what_is_wrong(stats) == []

    assert what_is_wrong({**stats, **figures}) == [what]


def test_free_pages_are_no_part_of_what_fills_the_map(stats):
    figures = {"records_bytes": 95, "records_free_bytes": 50, "map_bytes": 100}

    assert what_is_wrong({**stats, **figures}) == []


def test_a_disk_below_its_floor_and_a_tier_that_is_away_are_problems(stats):
    places = stats["places"]
    places["hot"]["free_bytes"] = places["hot"]["free_min"] - 1
    places["cold"] |= {"available": False, "reason": "it is gone", "free_bytes": None}

    found = list(troubles_in(stats))

    assert [(trouble.what, trouble.why.split()[1]) for trouble in found] == [
        ("disk", "hot"),
        ("tier", "is"),
    ]


def test_a_tier_whose_folder_went_away_degrades_the_store(tmp_path, open_checked):
    cold = tmp_path / "cold"
    tiers = (TierSettings(), TierSettings(), TierSettings(path=str(cold)))
    store = open_checked(tmp_path / "store", settings=StoreSettings(tiers=tiers))
    store.artifacts.put("t/w/a", b"x" * 100_000, tier="cold")
    cold.rename(tmp_path / "elsewhere")

    found = health_of(store)

    assert found.status == "degraded"
    assert [trouble.what for trouble in found.troubles] == ["tier"]
    (tmp_path / "elsewhere").rename(cold)
    wait_for(lambda: health_of(store).status == "ok", what="the cold tier")


def test_a_store_that_was_moved_away_has_failed(tmp_path, open_checked):
    store = open_checked(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "elsewhere")

    moved = health_of(store)
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "store")
    replaced = health_of(store)

    assert (moved.status, moved.troubles[0].what) == ("failed", "store")
    assert "was it moved?" in moved.troubles[0].why
    assert (replaced.status, replaced.troubles[0].what) == ("failed", "store")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "elsewhere").rename(tmp_path / "store")


def test_a_store_that_does_not_answer_has_failed_and_still_says_so(store, monkeypatch):
    def gone():
        raise Unavailable("store", "it was closed")

    monkeypatch.setattr(store, "stats", gone)

    found = health_of(store)

    assert (found.status, found.revision) == ("failed", None)
    assert b"it was closed" in health_text(found).splitlines()[0]
