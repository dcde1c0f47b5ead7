"""The workloads on keys under pytest-benchmark: ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

import pytest

import kvstate
from benchmarks import ours, rivals, workloads
from benchmarks.workloads import NotRun


@pytest.fixture(params=["kvstate", "RawLmdb", "DiskCache", "Sqlite", "Redis"])
def contender(request, tmp_path):
    if request.param == "kvstate":
        with kvstate.open(tmp_path / "store") as store:
            keys = ours.Keys(store)
            keys.set_many(dict.fromkeys(workloads.KEYS, workloads.VALUE))
            yield keys
        return
    try:
        rival = getattr(rivals, request.param)(tmp_path)
    except NotRun as error:
        pytest.skip(str(error))
    rival.set_many(dict.fromkeys(workloads.KEYS, workloads.VALUE))
    yield rival
    rival.close()


@pytest.mark.parametrize("work", ["get", "durable_set", "batch_set", "scan"])
def test_keys(benchmark, contender, work):
    benchmark.group = work
    function = getattr(workloads, work)
    if function(contender) is None:
        pytest.skip("it cannot")
    benchmark(function, contender)
