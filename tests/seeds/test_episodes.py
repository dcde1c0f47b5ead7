"""Episodes from an archive to a channel: records found by stage, moved on one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

import pytest

import kvstate

STAGES = ["discovered", "downloading", "downloaded", "converting", "converted", "published"]


@dataclass
class Episode:
    archive_identifier: str
    date: datetime
    stage: str = "discovered"
    attempts: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, str]] = field(default_factory=list)


class StateManager:
    """What the pipeline needs of a store."""

    def __init__(self, store):
        store.configure("episodes", index=["stage", "date"], history=100)
        self.store = store
        self.episodes = store.namespace("episodes")

    def discover(self, year, count):
        found = {
            f"hy0_{year}-{n:02}": Episode(f"hy0_{year}_{n}", datetime(year, n, 1, tzinfo=UTC))
            for n in range(1, count + 1)
        }
        return self.episodes.upsert_many(found)

    def advance(self, key, before, after, **changes):
        """Move on from one stage to another; `Conflict` when the episode is not there any more."""
        entry = self.episodes.entry(key)
        if entry is None or entry.value["stage"] != before:
            raise kvstate.Conflict(key, f"it is not {before}")
        value = {**entry.value, **changes, "stage": after}
        return self.episodes.set(key, value, if_revision=entry.revision)

    def by_stage(self, stage, limit=None):
        return [entry.key for entry in self.episodes.find(stage=stage, limit=limit)]


@pytest.fixture
def state(store):
    manager = StateManager(store)
    manager.discover(2004, 12)
    return manager


def test_discovery_is_idempotent(state):
    state.advance("hy0_2004-01", "discovered", "downloading")

    again = state.discover(2004, 3)

    assert (again.new, again.unchanged, again.changed) == (0, 2, 1)


def test_only_what_is_new_is_added(state):
    known = set(state.episodes)
    found = {f"hy0_2004-{n:02}" for n in range(10, 15)}

    assert sorted(found - known) == ["hy0_2004-13", "hy0_2004-14"]


def test_the_next_ones_of_a_stage_are_found_in_order(state):
    state.advance("hy0_2004-02", "discovered", "downloading")

    assert state.by_stage("discovered", 3) == ["hy0_2004-01", "hy0_2004-03", "hy0_2004-04"]
    assert state.by_stage("downloading") == ["hy0_2004-02"]
    assert state.by_stage("published") == []


def test_an_episode_is_moved_on_by_one_worker_only(state):
    entry = state.episodes.entry("hy0_2004-01")
    state.advance("hy0_2004-01", "discovered", "downloading")

    with pytest.raises(kvstate.Conflict):
        state.advance("hy0_2004-01", "discovered", "downloading")
    with pytest.raises(kvstate.Conflict):
        state.episodes.set("hy0_2004-01", entry.value, if_revision=entry.revision)


def test_a_whole_way_and_its_audit_trail(state, clock):
    for before, after in pairwise(STAGES):
        clock.advance(60)
        state.advance("hy0_2004-05", before, after)

    history = state.episodes.history("hy0_2004-05")

    assert [version.value["stage"] for version in history] == STAGES
    assert (history[-1].at - history[0].at).total_seconds() == 300
    assert state.episodes.get("hy0_2004-05", as_type=Episode).stage == "published"


def test_failures_are_kept_with_their_attempts(state):
    def failed(value):
        attempts = value["attempts"].get("download", 0) + 1
        error = {"stage": "downloading", "error": "timeout"}
        return {
            **value,
            "stage": "failed",
            "attempts": {**value["attempts"], "download": attempts},
            "errors": [*value["errors"], error],
        }

    state.advance("hy0_2004-06", "discovered", "downloading")
    state.episodes.update("hy0_2004-06", failed)
    state.episodes.update("hy0_2004-06", failed)

    episode = state.episodes.get("hy0_2004-06", as_type=Episode)
    assert (episode.attempts, len(episode.errors)) == ({"download": 2}, 2)
    assert state.by_stage("failed") == ["hy0_2004-06"]


def test_what_was_left_in_a_working_stage_is_found_after_a_crash(state):
    state.advance("hy0_2004-01", "discovered", "downloading")
    state.advance("hy0_2004-02", "discovered", "downloading")

    again = StateManager(state.store)
    for key in again.by_stage("downloading"):
        again.advance(key, "downloading", "discovered")

    assert len(again.by_stage("discovered")) == 12


def test_counts_per_stage_and_by_date(state):
    for n in range(1, 6):
        state.advance(f"hy0_2004-{n:02}", "discovered", "downloading")

    counts = {stage: len(state.by_stage(stage)) for stage in STAGES[:2]}
    spring = kvstate.Range(datetime(2004, 3, 1, tzinfo=UTC), datetime(2004, 6, 1, tzinfo=UTC))

    assert counts == {"discovered": 7, "downloading": 5}
    assert [e.value["date"].month for e in state.episodes.find(date=spring)] == [3, 4, 5]


def test_a_record_of_another_shape_is_refused(state):
    state.store.configure(
        "episodes",
        schema={"type": "object", "properties": {"stage": {"enum": [*STAGES, "failed"]}}},
    )

    with pytest.raises(kvstate.InvalidValue, match=r"\$\.stage"):
        state.advance("hy0_2004-01", "discovered", "dowloading")

    assert state.episodes["hy0_2004-01"]["stage"] == "discovered"


def test_one_worker_at_a_time_holds_an_episode(state):
    with state.store.lock("hy0_2004-01", owner="one", timeout=0) as held:
        other = state.store.lock("hy0_2004-01", owner="two", timeout=0)
        with pytest.raises(kvstate.Conflict, match="'one'"):
            other.acquire()
        assert held.held()

    with state.store.lock("hy0_2004-01", owner="two", timeout=0) as after:
        assert after.token > 0


def test_an_event_and_the_move_are_written_together(state):
    def move(t):
        episodes, log = t.namespace("episodes"), t.namespace("processing_log")
        episodes["hy0_2004-01"] = {**episodes["hy0_2004-01"], "stage": "downloading"}
        log.append("hy0_2004-01", {"event": "download started"})

    state.store.transact(move)

    moved = state.episodes.entry("hy0_2004-01")
    logged = state.store.namespace("processing_log").entry("hy0_2004-01")
    assert (moved.value["stage"], logged.value) == ("downloading", [{"event": "download started"}])
    assert moved.revision == logged.revision


def test_batches_go_on_after_the_last_episode(state):
    first = list(state.episodes.find(stage="discovered", limit=5))
    second = list(state.episodes.find(stage="discovered", limit=5, after=first[-1]))

    assert [e.key[-2:] for e in first + second] == [f"{n:02}" for n in range(1, 11)]


def test_what_changed_since_a_report_is_read_from_the_journal(state):
    reported = state.store.revision()
    state.advance("hy0_2004-01", "discovered", "downloading")
    state.advance("hy0_2004-02", "discovered", "downloading")

    events = state.store.journal(reported, namespace="episodes")

    assert [(e.name, e.previous["stage"], e.value["stage"]) for e in events] == [
        ("hy0_2004-01", "discovered", "downloading"),
        ("hy0_2004-02", "discovered", "downloading"),
    ]
