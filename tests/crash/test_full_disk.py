"""A disk without room: clean refusals, nothing lost, and on it goes once there is space."""

from __future__ import annotations

import os
import subprocess

import pytest

from kvstate.errors import Full
from kvstate.store import open_store


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MiB."""
    if os.getuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def _fill_with(write, limit=10_000):
    """Write until it is refused; give how many writes were acknowledged."""
    for number in range(limit):
        try:
            write(number)
        except Full:
            return number
    raise AssertionError("the disk never got full")


def _hog(path):
    """Take what room is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_keys_on_a_full_disk(small_disk):
    with open_store(small_disk / "store") as store:
        ns = store.namespace("ns")
        ns["first"] = "value"
        count = _fill_with(lambda number: ns.set(f"k{number}", os.urandom(20_000)))
        _hog(small_disk / "hog")

        assert count > 20
        assert len(ns) == count + 1
        assert ns["first"] == "value"
        with pytest.raises(Full):
            ns["more"] = os.urandom(50_000)
        assert store.check().clean

        (small_disk / "hog").unlink()
        ns["again"] = b"there is room"
        assert ns["again"] == b"there is room"
        assert store.check().clean


def test_artifacts_on_a_full_disk(small_disk):
    content = os.urandom(300_000)
    with open_store(small_disk / "store") as store:
        artifacts = store.artifacts
        artifacts.put("t/w/old", content)
        count = _fill_with(lambda n: artifacts.put(f"t/w/{n}", os.urandom(300_000)))

        assert count >= 5
        assert artifacts.get("t/w/old") == content
        report = store.check(verify=True)
        assert report.clean
        assert report.counts["artifacts"] == report.counts["files"] == count + 1
        with pytest.raises(Full):
            artifacts.put("t/w/old", os.urandom(3_000_000))
        assert artifacts.get("t/w/old") == content

        assert artifacts.delete("t/w/0") is True
        artifacts.put("t/w/new", content[::-1])
        assert artifacts.get("t/w/new") == content[::-1]
        assert store.check(verify=True).clean


def test_a_move_to_a_full_tier_leaves_the_artifact_where_it_is(small_disk, tmp_path):
    content = os.urandom(4_000_000)
    with open_store(small_disk / "store") as store:
        store.artifacts.put("t/w/a", content)

        with pytest.raises(Full):
            store.artifacts.move("t/w/a", "cold")

        assert store.artifacts.stat("t/w/a").tier == "hot"
        assert store.artifacts.get("t/w/a") == content
        assert store.check(verify=True).clean
        assert list((small_disk / "store/tiers/cold").rglob("*0000")) == []


def test_a_store_on_a_disk_that_is_full_from_the_start(small_disk):
    _hog(small_disk / "hog")

    with pytest.raises(Full):
        open_store(small_disk / "store")

    (small_disk / "hog").unlink()
    with open_store(small_disk / "store") as store:
        store.namespace("ns")["k"] = 1
        assert store.check().clean
