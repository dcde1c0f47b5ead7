"""Artifacts, one contender at a time: `python -m pytest benchmarks/test_artifacts.py`."""

from __future__ import annotations

import pytest

from benchmarks import ours, rivals, workloads

MAKERS = [ours.artifacts, rivals.files, rivals.files_durable]
SIZES = [1 << 10, 1 << 16, 1 << 24]
NAME = "acme/bench/artifact"

pytestmark = [
    pytest.mark.parametrize(
        "contender", MAKERS, indirect=True, scope="module", ids=lambda make: make.__name__
    ),
    pytest.mark.parametrize("size", SIZES),
]


def test_put(benchmark, contender, size):
    benchmark.group = f"put {size:,} bytes"

    benchmark.pedantic(contender.put, setup=lambda: ((NAME, workloads.fresh(size)), {}), rounds=20)


def test_get(benchmark, contender, size):
    benchmark.group = f"get {size:,} bytes"
    contender.put(NAME, workloads.fresh(size))

    content = benchmark(contender.get, NAME)

    assert len(content) == size
