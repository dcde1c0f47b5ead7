"""State, one contender at a time: `python -m pytest benchmarks/test_state.py`."""

from __future__ import annotations

from itertools import cycle

import pytest

from benchmarks import ours, rivals, workloads

MAKERS = [ours.embedded, ours.client, rivals.lmdb, rivals.diskcache, rivals.sqlite, rivals.redis]
ITEMS = workloads.items(10_000)

pytestmark = pytest.mark.parametrize(
    "contender", MAKERS, indirect=True, scope="module", ids=lambda make: make.__name__
)


@pytest.fixture(autouse=True)
def filled(contender):
    contender.set_many(ITEMS)


@pytest.mark.benchmark(group="get")
def test_get(benchmark, contender):
    keys = cycle(ITEMS)

    benchmark(lambda: contender.get(next(keys)))


@pytest.mark.benchmark(group="durable set")
def test_durable_set(benchmark, contender):
    benchmark(contender.set, "other", b"v" * 100)


@pytest.mark.benchmark(group="set 10,000 keys in one batch")
def test_set_many(benchmark, contender):
    benchmark.pedantic(contender.set_many, args=(ITEMS,), rounds=5)


@pytest.mark.benchmark(group="scan 10,000 keys")
def test_scan(benchmark, contender):
    count = benchmark.pedantic(lambda: sum(1 for _ in contender.scan()), rounds=5)

    assert count >= len(ITEMS)
