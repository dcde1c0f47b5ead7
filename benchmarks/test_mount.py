"""The mount, one contender at a time: `python -m pytest benchmarks/test_mount.py`."""

from __future__ import annotations

import os

import pytest

from benchmarks import ours, rivals, workloads

MAKERS = [ours.mount, rivals.disk, rivals.bindfs]
SIZES = workloads.QUICK

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.parametrize(
        "contender", MAKERS, indirect=True, scope="module", ids=lambda make: make.__name__
    ),
]


@pytest.fixture(scope="module")
def folder(contender):
    workloads.prepare_files(contender.folder, SIZES)
    return contender.folder


@pytest.mark.benchmark(group="stat")
def test_stat(benchmark, folder):
    benchmark(os.stat, folder / "small" / "0001.txt")


@pytest.mark.benchmark(group="open + read + close")
def test_open_read_close(benchmark, folder):
    benchmark(workloads.read_small, str(folder / "small" / "0001.txt"))


@pytest.mark.benchmark(group="create + write + close")
def test_create(benchmark, folder):
    def create(number):
        (folder / "small" / f"new-{number}").write_bytes(workloads.fresh(1024))

    numbers = iter(range(10_000))
    benchmark.pedantic(create, setup=lambda: ((next(numbers),), {}), rounds=50)


@pytest.mark.benchmark(group="ls -l")
def test_list(benchmark, folder):
    benchmark(lambda: [entry.stat() for entry in os.scandir(folder / "small")])


@pytest.mark.benchmark(group="read")
def test_read(benchmark, folder):
    content = benchmark.pedantic((folder / "big").read_bytes, rounds=3)

    assert len(content) == SIZES.big_bytes


@pytest.mark.benchmark(group="write + fsync")
def test_write(benchmark, folder):
    benchmark.pedantic(
        workloads.write_big, args=(folder / "out", SIZES.big_bytes), rounds=3, warmup_rounds=1
    )
