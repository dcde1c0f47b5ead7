"""The workloads on content under pytest-benchmark."""

from __future__ import annotations

import pytest

import kvstate
from benchmarks import ours, rivals, workloads


@pytest.fixture(params=["kvstate", "synced", "plain"])
def contender(request, tmp_path):
    if request.param == "kvstate":
        with kvstate.open(tmp_path / "store") as store:
            yield ours.Contents(store)
    else:
        yield rivals.PlainFiles(tmp_path, sync=request.param == "synced")


@pytest.mark.parametrize("size", workloads.SIZES)
@pytest.mark.parametrize("work", ["put_content", "get_content"])
def test_content(benchmark, contender, work, size):
    benchmark.group = f"{work} {size}"
    benchmark(getattr(workloads, work)(workloads.SIZES[size], 1), contender)
