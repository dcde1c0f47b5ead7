"""Moves to a disk that fails or is full: all stays readable where it is, and moves later."""

from __future__ import annotations

import errno
import gc
import os
import random
import stat
import subprocess
from contextlib import suppress

import pytest

from kvstate.errors import Damaged, Full, StateError
from kvstate.settings import StoreSettings, TierSettings
from kvstate.store import open_store
from tests.crash.faulty_disk import FaultyDisk
from tests.harness import fuse_or_skip, wait_for

MIB = 1 << 20
CONTENT = random.Random(8).randbytes(3 * MIB)
SMALL = b"among the records"
NAME = "t/w/large"
LEVELS = {"plain": None, "packed": 1}


def _settings(path, level, **options):
    tiers = (
        TierSettings(free_bytes_min=0),
        TierSettings(free_bytes_min=0),
        TierSettings(path=str(path), compression_level=level, free_bytes_min=0),
    )
    return StoreSettings(tiers=tiers, **options)


@pytest.fixture(params=LEVELS)
def level(request):
    return LEVELS[request.param]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A disk that fails when it is told to."""
    fuse_or_skip()
    disk = FaultyDisk(tmp_path_factory.mktemp("faulty"))
    yield disk
    gc.collect()  # what failed still has the disk's folders in its traces
    disk.close()


@pytest.fixture
def disk(faulty):
    """The disk, empty, on which each folder of names that begin alike is there."""
    for number in range(256):
        (faulty.kept / "cold" / f"{number:02x}").mkdir(parents=True, exist_ok=True)
    yield faulty
    faulty.order()
    for path in (faulty.kept / "cold").rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.fixture
def store(tmp_path, clock, disk, level):
    """A store whose cold tier is on the faulty disk, used before, with one artifact that is due."""
    with open_store(
        tmp_path / "store", clock=clock, settings=_settings(disk.path / "cold", level)
    ) as store:
        store.artifacts.put(
            "t/w/first", CONTENT[:100_000], metadata={"retention_override": "never"}
        )
        store.artifacts.move("t/w/first", "cold")
        store.artifacts.put(NAME, CONTENT)
        store.artifacts.put("t/w/small", SMALL)
        clock.advance(days=31)
        yield store


def _files_of(disk):
    return sorted(f for f in disk.kept.glob("cold/??/*") if f.is_file())


def _staged(disk):
    return sorted((disk.kept / "cold/staging").iterdir())


def _failures(store):
    return [event for event in store.journal() if event.kind == "fail"]


def _is_where_it_was(store):
    assert store.artifacts.stat(NAME).tier == "hot"
    assert store.artifacts.get(NAME) == CONTENT
    return True


FAULTS = {
    "create": {"fail": {"create": errno.EIO}},
    "first write": {"fail": {"write": errno.EIO}},
    "a later write": {"fail": {"write": errno.EIO}, "passes": 8},
    "disk full at the first write": {"fail": {"write": errno.ENOSPC}},
    "disk full on the way": {"fail": {"write": errno.ENOSPC}, "passes": 8},
    "read back": {"fail": {"read": errno.EIO}},
    "read back on the way": {"fail": {"read": errno.EIO}, "passes": 4},
    "flipped bits": {"flip": True},
    "sync": {"fail": {"fsync": errno.EIO}},
    "link": {"fail": {"link": errno.EIO}},
    "sync of the folder": {"fail": {"fsyncdir": errno.EIO}},
    "sync of the folder, and no way back": {"fail": {"fsyncdir": errno.EIO, "unlink": errno.EIO}},
    "a folder of names": {"fail": {"mkdir": errno.EIO}},
    "sync of a folder of names": {"fail": {"fsyncdir": errno.EIO}},
    "read-only": {
        "fail": dict.fromkeys(("create", "write", "link", "unlink", "mkdir"), errno.EROFS)
    },
    "everything": {"fail": {"all": errno.EIO}},
}


def _order(disk, fault):
    if "folder of names" in fault:
        for folder in disk.kept.glob("cold/??"):
            if not any(folder.iterdir()):
                folder.rmdir()
    disk.order(**FAULTS[fault])


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_move_stays_is_tried_again_and_moves_in_the_end(store, disk, clock, fault):
    _order(disk, fault)

    outcome = store.lifecycle.run()

    assert (outcome.promoted_to_cold, outcome.errors) == (1, 1)  # the small one needs no disk
    assert outcome.failures[0][0] == NAME
    assert _is_where_it_was(store)
    assert store.artifacts.stat(NAME).problem == outcome.failures[0][1] != ""
    (failure,) = _failures(store)
    assert (failure.name, "try 1: " + outcome.failures[0][1]) == (NAME, failure.why)

    for tries, minutes in enumerate((1, 2, 4), 2):
        clock.advance(minutes * 60 - 1)
        assert store.lifecycle.run().errors == 0
        clock.advance(1)
        assert store.lifecycle.run().errors == 1
        assert len(_failures(store)) == tries

    clock.advance(days=1000)
    outcome = store.lifecycle.run()
    assert outcome.errors == 1
    assert _is_where_it_was(store)

    disk.order()
    clock.advance(days=1)
    wait_for(lambda: store.stats()["places"]["cold"]["available"], 5, "the disk")
    outcome = store.lifecycle.run()
    assert (outcome.promoted_to_cold, outcome.errors) == (1, 0), outcome.failures
    assert store.artifacts.stat(NAME).tier == "cold"
    assert store.artifacts.stat(NAME).problem == ""
    assert store.artifacts.get(NAME) == CONTENT
    assert _staged(disk) == []
    assert len(_files_of(disk)) == 2
    assert store.check(verify=True).clean


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_written_there_is_refused_and_leaves_nothing(store, disk, fault):
    _order(disk, fault)

    try:
        store.artifacts.put("t/w/new", CONTENT[1:], tier="cold")
    except StateError:
        assert not store.artifacts.exists("t/w/new")
    else:
        assert fault.startswith(("read back", "flipped"))  # a put does not read back
        store.artifacts.delete("t/w/new")
    disk.order()
    wait_for(lambda: store.stats()["places"]["cold"]["available"], 5, "the disk")
    store.lifecycle.run()

    assert _staged(disk) == []
    assert store.check(verify=True).clean


def _descriptors():
    """Give how many files are open, and the folders."""
    gc.collect()
    files, folders = 0, []
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        try:
            found = os.fstat(number)
        except OSError as error:
            # The listing's own is closed; a file that was removed is open, and has no state there.
            files += error.errno != errno.EBADF
            continue
        if stat.S_ISDIR(found.st_mode):
            folders.append((found.st_dev, found.st_ino))
        else:
            files += 1
    return files, folders


def _try_all(store, disk, orders):
    """Move and write under orders, then without."""
    disk.order(**orders)
    for call in (
        lambda: store.artifacts.move(NAME, "cold"),
        lambda: store.artifacts.put("t/w/new", CONTENT[2:], tier="cold"),
    ):
        with suppress(StateError):
            call()
    disk.order()
    wait_for(lambda: store.stats()["places"]["cold"]["available"], 5, "the disk")
    store.artifacts.delete("t/w/new")
    store.artifacts.move(NAME, "hot")  # not every one of them fails
    store.blobs.recover()


def test_failures_keep_no_descriptors(store, disk):
    _try_all(store, disk, {})
    before, _ = _descriptors()

    for orders in FAULTS.values():
        _try_all(store, disk, orders)

    assert _is_where_it_was(store)
    after, folders = _descriptors()
    assert after == before
    assert len(folders) == len(set(folders))


@pytest.mark.parametrize("size", [1, 4096, 65537])
def test_short_writes_are_written_on(store, disk, size):
    content = CONTENT[: 20 * size + 100_001] if size > 1 else CONTENT[:70_000]
    store.artifacts.put("t/w/short", content)
    if size == 1:
        size = 1000
    disk.order(short=size)

    store.artifacts.move("t/w/short", "cold")

    assert store.artifacts.get("t/w/short") == content
    assert store.check(verify=True).clean


def test_a_move_back_from_a_disk_that_cannot_be_read_leaves_it_there(store, disk):
    store.artifacts.move(NAME, "cold")
    disk.order(fail={"read": errno.EIO}, passes=2)

    with pytest.raises(StateError) as caught:
        store.artifacts.move(NAME, "hot")

    assert not isinstance(caught.value, Damaged)  # nothing says that the bytes are wrong
    disk.order()
    assert store.artifacts.stat(NAME).tier == "cold"
    assert store.artifacts.get(NAME) == CONTENT
    assert list(store.path.glob("tiers/hot/staging/*")) == []
    store.artifacts.move(NAME, "hot")
    assert store.check(verify=True).clean


# Full disks


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


def test_a_target_that_gets_full_on_the_way_takes_what_fits_and_the_rest_later(
    tmp_path, disk_of, clock, level
):
    archive = disk_of(8)
    contents = {f"t/w/{n}": random.Random(n).randbytes(3 * MIB) for n in range(4)}
    settings = _settings(archive / "cold", level)
    with open_store(tmp_path / "store", clock=clock, settings=settings) as store:
        for name, content in contents.items():
            store.artifacts.put(name, content)
        clock.advance(days=31)
        before, _ = _descriptors()

        outcome = store.lifecycle.run()

        assert (outcome.promoted_to_cold, outcome.errors) == (2, 2)
        assert all("No space left" in why or "are free" in why for _, why in outcome.failures)
        assert {name: store.artifacts.get(name) for name in contents} == contents
        tiers = {name: store.artifacts.stat(name).tier for name in contents}
        assert sorted(tiers.values()) == ["cold", "cold", "hot", "hot"]
        assert list((archive / "cold/staging").iterdir()) == []
        assert _descriptors()[0] == before
        assert store.check(verify=True).clean

        subprocess.run(["mount", "-o", "remount,size=32m", archive], check=True)
        clock.advance(60)
        outcome = store.lifecycle.run()
        assert (outcome.promoted_to_cold, outcome.errors) == (2, 0)
        assert {name: store.artifacts.get(name) for name in contents} == contents
        assert store.check(verify=True).clean


def test_a_store_whose_own_disk_is_full_loses_nothing_and_moves_later(disk_of, clock, level):
    disk, archive = disk_of(8), disk_of(32)
    settings = _settings(archive / "cold", level)
    contents = {f"t/w/{n}": random.Random(n).randbytes(MIB) for n in range(2)}
    with open_store(disk / "store", clock=clock, settings=settings) as store:
        for name, content in contents.items():
            store.artifacts.put(name, content, metadata={"much": "x" * 60_000})
        clock.advance(days=31)
        _hog(disk / "hog")
        for size in (50_000, 5000, 500):
            with pytest.raises(Full):
                for number in range(10_000):
                    store.namespace("ns")[f"{size}-{number}"] = bytes(size)

        with suppress(Full):
            assert store.lifecycle.run().errors > 0

        assert {name: store.artifacts.get(name) for name in contents} == contents

        (disk / "hog").unlink()
        clock.advance(60)
        assert store.lifecycle.run().errors == 0
        assert {store.artifacts.stat(name).tier for name in contents} == {"cold"}
        assert {name: store.artifacts.get(name) for name in contents} == contents
        assert list((archive / "cold/staging").iterdir()) == []
        assert store.check(verify=True).clean


def _hog(path):
    """Take what room is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
