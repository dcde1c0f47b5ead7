"""Tiers that cannot be written, links planted in them, and files of dead writers."""

from __future__ import annotations

import os
import random

import pytest

from kvstate.errors import StateError
from kvstate.store import open_store

CONTENT = random.Random(6).randbytes(200_000)


@pytest.fixture
def path(tmp_path):
    with open_store(tmp_path / "store"):
        pass
    return tmp_path / "store"


def test_a_move_that_fails_is_recorded_and_the_rest_goes_on(path, clock):
    with open_store(path, clock=clock) as store:
        store.artifacts.put("t/w/large", CONTENT)
        store.artifacts.put("t/w/small", b"small")
    staging = path / "tiers/warm/staging"
    staging.write_text("in the way")
    clock.advance(days=8)
    with open_store(path, clock=clock) as store:
        outcome = store.lifecycle.run()

        assert (outcome.promoted_to_warm, outcome.errors) == (1, 1)
        assert outcome.failures[0][0] == "t/w/large"
        assert store.lifecycle.last() == outcome
        assert store.artifacts.stat("t/w/large").tier == "hot"
        assert store.artifacts.get("t/w/large") == CONTENT

        staging.unlink()
        clock.advance(60)
        assert store.lifecycle.run().promoted_to_warm == 1
        assert store.artifacts.get("t/w/large") == CONTENT
        assert store.check(verify=True).clean


def test_links_planted_in_a_tier_lead_nowhere(path, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"precious")
    for name in ("staging", *(f"{n:02x}" for n in range(256))):
        found = path / "tiers/hot" / name
        found.symlink_to(outside)

    with pytest.raises(StateError):
        open_store(path).artifacts.put("t/w/a", CONTENT)

    assert sorted(f.name for f in outside.iterdir()) == ["victim"]
    assert (outside / "victim").read_bytes() == b"precious"


def test_what_a_dead_writer_left_is_cleared_on_opening(path):
    staging = path / "tiers/hot/staging"
    staging.mkdir()
    (staging / ("ab" * 18)).write_bytes(b"half")
    (staging / "no name of ours").write_bytes(b"half")

    with open_store(path) as store:
        assert list(staging.iterdir()) == []
        assert store.check().clean


def test_what_a_living_writer_has_under_way_is_left_alone(path):
    with open_store(path) as store:
        writer = store.artifacts.open("t/w/a", "w")
        writer.write(CONTENT)

        with open_store(path) as other:
            assert other.check().clean
            assert len(list((path / "tiers/hot/staging").iterdir())) == 1
        writer.close()

        assert store.artifacts.get("t/w/a") == CONTENT


def test_a_file_published_but_not_committed_goes_with_its_note(path):
    with open_store(path) as store:
        staging = store.blobs.staging(0)
        staging.write(0, CONTENT)
        staging.publish()
        os.close(staging._fd)  # as the kernel does when the process dies
        staging._fd = -1
        staging.published = False
        assert len([f for f in path.glob("tiers/hot/*/*") if f.is_file()]) == 2

    with open_store(path) as store:
        assert [f for f in path.glob("tiers/hot/*/*") if f.is_file()] == []
        assert store.check().clean


def test_a_committed_file_whose_note_is_left_stays(path):
    with open_store(path) as store:
        store.artifacts.put("t/w/a", CONTENT)
    (file,) = [f for f in path.glob("tiers/hot/??/*") if f.is_file()]
    os.link(file, path / "tiers/hot/staging" / file.name)

    with open_store(path) as store:
        assert list((path / "tiers/hot/staging").iterdir()) == []
        assert store.artifacts.get("t/w/a") == CONTENT
        assert store.check(verify=True).clean
