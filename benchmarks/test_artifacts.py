"""The small workloads on artifacts under pytest-benchmark."""

from __future__ import annotations

import pytest

import kvstate
from benchmarks import children, ours, rivals, workloads
from kvstate.store import open_store


@pytest.fixture(params=["kvstate", "synced"])
def contender(request, tmp_path):
    if request.param == "kvstate":
        with kvstate.open(tmp_path / "store") as store:
            yield ours.Contents(store)
        return
    cycle = rivals.SyncedCycle(tmp_path)
    yield cycle
    cycle.close()


@pytest.fixture
def aged(tmp_path):
    clock = children.Clock()
    with open_store(tmp_path / "store", clock=clock) as store:
        store.artifacts.put_many((f"bench/w/a{n}", n.to_bytes(64, "big")) for n in range(1000))
        yield store, clock


def test_put_one(benchmark, contender):
    benchmark.group = "one durable put of 4 KiB"
    benchmark(workloads.put_content(4096, 1), contender)


def test_put_together(benchmark, tmp_path):
    benchmark.group = "1,000 puts of 4 KiB together"
    with kvstate.open(tmp_path / "store") as store:
        benchmark(workloads.put_together(4096, 1000), ours.Contents(store))


@pytest.mark.parametrize("act", ["run", "next_due_ns"])
def test_nothing_due(benchmark, aged, act):
    benchmark.group = "nothing due"
    benchmark(getattr(aged[0].lifecycle, act))


def test_a_thousand_moves(benchmark, aged):
    store, clock = aged
    benchmark.group = "1,000 small moves to warm"
    clock.pass_hours(8 * 24)
    outcome = benchmark.pedantic(store.lifecycle.run, rounds=1)
    assert outcome.promoted_to_warm == 1000
