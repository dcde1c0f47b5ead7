"""A disk without room: clean refusals, nothing lost, and on it goes once there is space."""

from __future__ import annotations

import os
import subprocess

import pytest

from kvstate.errors import Full
from kvstate.settings import StoreSettings, TierSettings
from kvstate.store import open_store

MIB = 1 << 20
NO_FLOOR = StoreSettings(tiers=(TierSettings(free_bytes_min=0),) * 3)


@pytest.fixture
def disk_of(tmp_path):
    """Make file systems of so many MiB."""
    if os.getuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = []

    def make(mebibytes):
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        size = f"size={mebibytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", path], check=True)
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def small_disk(disk_of):
    """A file system of 6 MiB."""
    return disk_of(6)


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
    with open_store(small_disk / "store", settings=NO_FLOOR) as store:
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
    with open_store(small_disk / "store", settings=NO_FLOOR) as store:
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
    with open_store(small_disk / "store", settings=NO_FLOOR) as store:
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
        open_store(small_disk / "store", settings=NO_FLOOR)

    (small_disk / "hog").unlink()
    with open_store(small_disk / "store", settings=NO_FLOOR) as store:
        store.namespace("ns")["k"] = 1
        assert store.check().clean


def _tiers(**settings):
    """Give a store's settings with these for the cold tier."""
    return StoreSettings(tiers=(TierSettings(), TierSettings(), TierSettings(**settings)))


def _free(path):
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def test_content_is_refused_before_the_disk_has_less_than_its_floor(disk_of):
    disk = disk_of(24)
    with open_store(disk / "store") as store:
        store.artifacts.put("t/w/first", os.urandom(MIB))
        count = _fill_with(lambda n: store.artifacts.put(f"t/w/{n}", os.urandom(MIB)))

        assert count >= 3
        assert 16 * MIB <= _free(disk) < 18 * MIB
        with pytest.raises(Full, match=r"the hot tier at .*tiers\.hot\.free_min"):
            store.artifacts.put("t/w/more", os.urandom(MIB))
        store.namespace("ns")["key"] = "value"
        store.artifacts.put("t/w/small", b"among the records")
        assert store.artifacts.delete("t/w/first") is True
        assert store.artifacts.delete("t/w/0") is True
        store.artifacts.put("t/w/more", os.urandom(MIB))
        assert store.check(verify=True).clean


def test_a_long_file_stops_at_the_floor_and_leaves_nothing(disk_of):
    disk = disk_of(64)
    with open_store(disk / "store") as store:
        writer = store.artifacts.open("t/w/long", "w")
        lowest = _free(disk)

        with pytest.raises(Full):
            for _ in range(64):
                writer.write(os.urandom(MIB))
                lowest = min(lowest, _free(disk))
        writer.discard()

        assert 16 * MIB <= lowest < 20 * MIB
        assert _free(disk) > 56 * MIB
        assert store.check().clean


def test_one_large_write_is_refused_before_its_first_byte(disk_of):
    disk = disk_of(64)
    with open_store(disk / "store") as store:
        store.artifacts.put("t/w/a", os.urandom(100_000))
        before = _free(disk)

        with pytest.raises(Full):
            store.artifacts.put("t/w/large", bytes(60 * MIB))

        assert _free(disk) == before


def test_content_that_no_longer_fits_in_memory_survives_a_refusal(disk_of):
    disk = disk_of(24)
    with open_store(disk / "store") as store:
        store.artifacts.put("t/w/first", os.urandom(100_000))
        staging = store.blobs.staging(0)
        content = os.urandom(60_000)
        staging.write(0, content)
        with (disk / "hog").open("wb") as hog:
            hog.write(bytes(_free(disk) - 16 * MIB - 8192))

        with pytest.raises(Full):
            staging.write(60_000, bytes(100_000))

        assert staging.read(0, 70_000) == content
        assert staging.seal().inline == content
        assert list((disk / "store/tiers/hot/staging").iterdir()) == []
        staging.discard()
        assert store.check().clean


def test_a_refused_write_to_published_content_leaves_it_as_it_is(disk_of):
    disk = disk_of(24)
    content = os.urandom(3 * MIB)
    with open_store(disk / "store") as store:
        staging = store.blobs.staging(0)
        staging.write(0, content)
        staging.publish()
        with (disk / "hog").open("wb") as hog:
            hog.write(bytes(_free(disk) - 17 * MIB))

        with pytest.raises(Full):
            staging.write(0, b"other")

        assert staging.read(0, len(content)) == content
        assert staging.published
        staging.unpublish()
        staging.discard()
        assert store.check().clean


def test_a_tier_on_a_full_disk_takes_no_more_and_the_others_go_on(disk_of):
    disk, archive = disk_of(64), disk_of(8)
    content = os.urandom(4 * MIB)
    settings = _tiers(path=str(archive / "kvstate"), free_bytes_min=2 * MIB)
    with open_store(disk / "store", settings=settings) as store:
        store.artifacts.put("t/w/a", content)
        store.artifacts.move("t/w/a", "cold")
        store.artifacts.put("t/w/b", content[::-1])

        with pytest.raises(Full):
            store.artifacts.move("t/w/b", "cold")

        assert store.artifacts.stat("t/w/b").tier == "hot"
        assert store.artifacts.get("t/w/a") == content
        assert store.artifacts.get("t/w/b") == content[::-1]
        assert list((archive / "kvstate/staging").iterdir()) == []
        assert store.check(verify=True).clean
        store.artifacts.delete("t/w/a")
        store.artifacts.move("t/w/b", "cold")
        assert store.check(verify=True).clean
