"""Tiers that cannot be written, links planted in them, and files of dead writers."""

from __future__ import annotations

import os
import random
import subprocess
from contextlib import suppress

import pytest

from kvstate.errors import Denied, StateError, Unavailable
from kvstate.settings import StoreSettings, TierSettings
from kvstate.store import open_store
from tests.harness import wait_for

CONTENT = random.Random(6).randbytes(200_000)


@pytest.fixture
def path(tmp_path):
    with open_store(tmp_path / "store"):
        pass
    return tmp_path / "store"


def test_a_move_that_fails_is_recorded_and_the_rest_goes_on(path, clock):
    with open_store(path, clock=clock) as store:
        store.artifacts.put("t/w/large", CONTENT)
        store.artifacts.put("t/w/small", b"small")
    staging = path / "tiers/warm/staging"
    staging.write_text("in the way")
    clock.advance(days=8)
    with open_store(path, clock=clock) as store:
        outcome = store.lifecycle.run()

        assert (outcome.promoted_to_warm, outcome.errors) == (1, 1)
        assert outcome.failures[0][0] == "t/w/large"
        assert store.lifecycle.last() == outcome
        assert store.artifacts.stat("t/w/large").tier == "hot"
        assert store.artifacts.get("t/w/large") == CONTENT

        staging.unlink()
        clock.advance(60)
        assert store.lifecycle.run().promoted_to_warm == 1
        assert store.artifacts.get("t/w/large") == CONTENT
        assert store.check(verify=True).clean


def test_links_planted_in_a_tier_lead_nowhere(path, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"precious")
    for name in ("staging", *(f"{n:02x}" for n in range(256))):
        found = path / "tiers/hot" / name
        found.symlink_to(outside)

    with pytest.raises(StateError):
        open_store(path).artifacts.put("t/w/a", CONTENT)

    assert sorted(f.name for f in outside.iterdir()) == ["victim"]
    assert (outside / "victim").read_bytes() == b"precious"


def test_what_a_dead_writer_left_is_cleared_on_opening(path):
    staging = path / "tiers/hot/staging"
    staging.mkdir()
    (staging / ("ab" * 18)).write_bytes(b"half")
    (staging / "no name of ours").write_bytes(b"half")

    with open_store(path) as store:
        assert list(staging.iterdir()) == []
        assert store.check().clean


def test_what_a_living_writer_has_under_way_is_left_alone(path):
    with open_store(path) as store:
        writer = store.artifacts.open("t/w/a", "w")
        writer.write(CONTENT)

        with open_store(path) as other:
            assert other.check().clean
            assert len(list((path / "tiers/hot/staging").iterdir())) == 1
        writer.close()

        assert store.artifacts.get("t/w/a") == CONTENT


def test_a_file_published_but_not_committed_goes_with_its_note(path):
    with open_store(path) as store:
        staging = store.blobs.staging(0)
        staging.write(0, CONTENT)
        staging.publish()
        os.close(staging._fd)  # as the kernel does when the process dies
        staging._fd = -1
        staging.published = False
        assert len([f for f in path.glob("tiers/hot/*/*") if f.is_file()]) == 2

    with open_store(path) as store:
        assert [f for f in path.glob("tiers/hot/*/*") if f.is_file()] == []
        assert store.check().clean


def test_a_committed_file_whose_note_is_left_stays(path):
    with open_store(path) as store:
        store.artifacts.put("t/w/a", CONTENT)
    (file,) = [f for f in path.glob("tiers/hot/??/*") if f.is_file()]
    os.link(file, path / "tiers/hot/staging" / file.name)

    with open_store(path) as store:
        assert list((path / "tiers/hot/staging").iterdir()) == []
        assert store.artifacts.get("t/w/a") == CONTENT
        assert store.check(verify=True).clean


# Tiers on disks of their own


class Disk:
    """A file system that can be mounted and taken away; it lives as long as the test."""

    def __init__(self, folder):
        self.kept = folder / "kept"
        self.mounts = []
        self.kept.mkdir(parents=True)
        _run("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", self.kept)

    def mount(self, path):
        path.mkdir(exist_ok=True)
        _run("mount", "--bind", self.kept, path)
        self.mounts.append(path)

    def take_away(self):
        _run("umount", "-l", self.mounts.pop())

    def close(self):
        for path in (*self.mounts, self.kept):
            _run("umount", "-l", path)


def _run(*command):
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def new_disk(tmp_path):
    if os.getuid() != 0:
        pytest.skip("mounting a disk needs root")
    disks = []

    def make():
        disks.append(Disk(tmp_path / f"disk{len(disks)}"))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


@pytest.fixture
def disk(new_disk):
    return new_disk()


@pytest.fixture
def archive(disk, tmp_path):
    """The folder that the disk is mounted on, and that is the cold tier's."""
    disk.mount(tmp_path / "archive")
    return tmp_path / "archive"


def _cold(path, **settings):
    tier = TierSettings(path=str(path), **{"free_bytes_min": 0, **settings})
    return StoreSettings(tiers=(TierSettings(), TierSettings(), tier))


@pytest.fixture
def open_tiered(tmp_path, archive):
    """Open the store whose cold tier is the archive; closed when the test is over."""
    opened = []

    def opener(path=archive, store="tiered", **options):
        options = {"settings": _cold(path), **options}
        opened.append(open_store(tmp_path / store, **options))
        return opened[-1]

    yield opener
    for store in opened:
        store.close()


@pytest.fixture
def tiered(open_tiered):
    """A store with an artifact in the cold tier and one in the hot."""
    store = open_tiered()
    store.artifacts.put("t/w/cold", CONTENT)
    store.artifacts.move("t/w/cold", "cold")
    store.artifacts.put("t/w/hot", CONTENT[::-1])
    store.artifacts.put("t/w/small", b"small", tier="cold")
    return store


def _listing(path):
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def _goes_on_without_its_cold_tier(store, why, kind=Unavailable):
    """See that one tier is away and says why, and that all else works."""
    artifacts = store.artifacts
    for use in (
        lambda: artifacts.get("t/w/cold"),
        lambda: artifacts.put("t/w/new", CONTENT[1:], tier="cold"),
        lambda: artifacts.move("t/w/hot", "cold"),
    ):
        with pytest.raises(kind, match=why):
            use()
    assert artifacts.get("t/w/hot") == CONTENT[::-1]
    assert artifacts.get("t/w/small") == b"small"
    assert artifacts.stat("t/w/cold").tier == "cold"
    assert artifacts.stat("t/w/hot").tier == "hot"
    store.namespace("ns")["key"] = os.urandom(100_000)
    artifacts.put("t/w/other", CONTENT[2:])
    assert artifacts.delete("t/w/other") is True
    (problem,) = store.check(verify=True).problems
    assert (problem.kind, problem.where) == ("tier", "cold")
    status = store.stats()["places"]
    assert [status[tier]["available"] for tier in ("hot", "warm", "cold")] == [True, True, False]
    assert problem.why.startswith(status["cold"]["reason"])


def _is_whole(store):
    wait_for(lambda: store.stats()["places"]["cold"]["available"], 5, "the cold tier")
    assert store.artifacts.get("t/w/cold") == CONTENT
    assert store.artifacts.get("t/w/hot") == CONTENT[::-1]
    store.artifacts.move("t/w/hot", "cold")
    assert store.artifacts.get("t/w/hot") == CONTENT[::-1]
    assert store.check(verify=True).clean


def test_a_disk_that_goes_and_comes_back_while_in_use(tiered, disk, archive):
    reader = tiered.artifacts.open("t/w/cold")
    before = _listing(disk.kept)
    disk.take_away()

    _goes_on_without_its_cold_tier(tiered, "mount its disk")
    assert list(archive.iterdir()) == []
    assert _listing(disk.kept) == before
    assert reader.read() == CONTENT
    reader.close()

    disk.mount(archive)
    _is_whole(tiered)


def test_a_disk_that_is_not_mounted_when_the_store_is_opened(tiered, open_tiered, disk, archive):
    tiered.close()
    disk.take_away()
    store = open_tiered()

    _goes_on_without_its_cold_tier(store, "no kvstate-tier file.*mount its disk")
    assert list(archive.iterdir()) == []
    store.close()
    archive.rmdir()
    store = open_tiered()
    _goes_on_without_its_cold_tier(store, "its folder is not there")

    assert not archive.exists()
    disk.mount(archive)
    _is_whole(store)


def test_a_file_under_way_when_the_disk_goes_is_refused_and_nothing_is_left(tiered, disk, archive):
    writer = tiered.artifacts.writer("t/w/new", tier="cold")
    writer.write(CONTENT[3:])
    disk.take_away()

    with pytest.raises(Unavailable):
        writer.close()
    assert list(archive.iterdir()) == []
    assert not tiered.artifacts.exists("t/w/new")

    disk.mount(archive)
    wait_for(lambda: tiered.stats()["places"]["cold"]["available"])
    tiered.lifecycle.run()
    assert list((archive / "staging").iterdir()) == []
    _is_whole(tiered)


def test_a_delete_while_the_disk_is_away_frees_the_file_when_it_is_back(tiered, disk, archive):
    disk.take_away()

    assert tiered.artifacts.delete("t/w/cold") is True

    disk.mount(archive)
    wait_for(lambda: tiered.stats()["places"]["cold"]["available"])
    tiered.lifecycle.run()
    assert [found for found in archive.glob("??/*") if found.is_file()] == []
    assert tiered.check(verify=True).clean


@pytest.mark.parametrize("reopened", [True, False])
def test_a_tier_that_is_read_only_is_read_and_not_written(tiered, open_tiered, archive, reopened):
    _run("mount", "-o", "remount,ro,bind", archive)
    before = _listing(archive)
    if reopened:
        tiered.close()
        tiered = open_tiered()

    with pytest.raises(Denied, match="Read-only file system"):
        tiered.artifacts.move("t/w/hot", "cold")
    with pytest.raises(Denied):
        tiered.artifacts.put("t/w/new", CONTENT[1:], tier="cold")
    assert tiered.artifacts.stat("t/w/hot").tier == "hot"
    assert tiered.artifacts.get("t/w/hot") == CONTENT[::-1]
    assert tiered.artifacts.get("t/w/cold") == CONTENT
    assert tiered.check(verify=True).clean
    assert _listing(archive) == before

    _run("mount", "-o", "remount,rw,bind", archive)
    _is_whole(tiered)


def test_leftovers_on_a_read_only_tier_do_not_keep_the_store_from_opening(
    tiered, open_tiered, archive
):
    tiered.close()
    (archive / "ab").mkdir()
    (archive / "ab" / ("ab" * 18)).write_bytes(b"published, not committed")
    os.link(archive / "ab" / ("ab" * 18), archive / "staging" / ("ab" * 18))
    _run("mount", "-o", "remount,ro,bind", archive)

    assert open_tiered().artifacts.get("t/w/cold") == CONTENT

    _run("mount", "-o", "remount,rw,bind", archive)
    _is_whole(open_tiered())
    assert list((archive / "staging").iterdir()) == list((archive / "ab").iterdir()) == []


@pytest.mark.parametrize("reopened", [True, False])
def test_a_link_in_the_place_of_a_tier_leads_nowhere(tmp_path, open_tiered, reopened):
    folder, outside = tmp_path / "cold", tmp_path / "outside"
    store = open_tiered(folder)
    store.artifacts.put("t/w/cold", CONTENT, tier="cold")
    store.artifacts.put("t/w/hot", CONTENT[::-1])
    store.artifacts.put("t/w/small", b"small", tier="cold")
    folder.rename(outside)
    folder.symlink_to(outside)
    before = _listing(outside)
    if reopened:
        store.close()
        store = open_tiered(folder)

    _goes_on_without_its_cold_tier(store, "a link lies where its folder should be")
    assert _listing(outside) == before

    folder.unlink()
    outside.rename(folder)
    _is_whole(store)


@pytest.mark.parametrize("reopened", [True, False])
def test_the_disk_of_another_store_is_not_touched(
    tiered, open_tiered, new_disk, tmp_path, disk, archive, reopened
):
    others = new_disk()
    others.mount(tmp_path / "others")
    other = open_tiered(tmp_path / "others", store="other")
    other.artifacts.put("t/w/cold", CONTENT[5:], tier="cold")
    before, own = _listing(others.kept), _listing(disk.kept)
    disk.take_away()
    others.mount(archive)
    if reopened:
        tiered.close()
        tiered = open_tiered()

    _goes_on_without_its_cold_tier(tiered, "belongs to another store.*mount the right disk")
    assert _listing(others.kept) == before
    assert _listing(disk.kept) == own
    assert other.check(verify=True).clean

    others.take_away()
    disk.mount(archive)
    _is_whole(tiered)


def test_two_tiers_whose_disks_were_swapped_are_not_used(new_disk, tmp_path):
    warm, cold = new_disk(), new_disk()
    paths = [tmp_path / "warm", tmp_path / "cold"]
    tiers = [TierSettings(path=str(path), free_bytes_min=0) for path in paths]
    settings = StoreSettings(tiers=(TierSettings(), *tiers))
    warm.mount(paths[0])
    cold.mount(paths[1])
    with open_store(tmp_path / "store", settings=settings) as store:
        store.artifacts.put("t/w/warm", CONTENT, tier="warm")
        store.artifacts.put("t/w/cold", CONTENT[1:], tier="cold")
        warm.take_away()
        cold.take_away()
        warm.mount(paths[1])
        cold.mount(paths[0])
        before = [_listing(disk.kept) for disk in (warm, cold)]

        for name, why in (("warm", "that of the cold tier"), ("cold", "that of the warm tier")):
            with pytest.raises(Unavailable, match=why):
                store.artifacts.get(f"t/w/{name}")
            with pytest.raises(Unavailable, match=why):
                store.artifacts.put("t/w/new", CONTENT[2:], tier=name)
        assert [problem.kind for problem in store.check().problems] == ["tier", "tier"]
        assert [_listing(disk.kept) for disk in (warm, cold)] == before

        warm.take_away()
        cold.take_away()
        warm.mount(paths[0])
        cold.mount(paths[1])
        for tier in ("warm", "cold"):
            wait_for(lambda tier=tier: store.stats()["places"][tier]["available"])
        assert store.artifacts.get("t/w/warm") == CONTENT
        assert store.check(verify=True).clean


def test_a_tier_without_its_identity_is_not_used(tiered, open_tiered, archive):
    tiered.close()
    identity = archive / "kvstate-tier"
    kept = identity.read_bytes()
    identity.unlink()
    before = _listing(archive)
    store = open_tiered()

    _goes_on_without_its_cold_tier(store, "has no kvstate-tier file")
    assert _listing(archive) == before

    identity.write_bytes(kept)
    _is_whole(store)


def test_a_tier_that_moved_to_another_disk_with_its_identity_just_works(
    tiered, open_tiered, new_disk, tmp_path, archive
):
    tiered.close()
    new_disk().mount(tmp_path / "larger")
    _run("cp", "-a", archive, tmp_path / "larger/cold")

    _is_whole(open_tiered(tmp_path / "larger/cold"))


def test_a_disk_with_a_file_system_of_its_own_goes_and_comes_back(tmp_path, open_tiered):
    image, path = tmp_path / "image", tmp_path / "real"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    try:
        _run("mkfs.ext4", "-q", image)
        _run("mount", "-o", "loop", image, path)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a loop device is not possible here")
    try:
        store = open_tiered(path)
        store.artifacts.put("t/w/cold", CONTENT, tier="cold")
        store.artifacts.put("t/w/hot", CONTENT[::-1])
        store.artifacts.put("t/w/small", b"small", tier="cold")
        _run("umount", "-l", path)

        _goes_on_without_its_cold_tier(store, "mount its disk")
        assert list(path.iterdir()) == []

        _run("mount", "-o", "loop", image, path)
        _is_whole(store)
        store.close()
    finally:
        with suppress(subprocess.CalledProcessError):
            _run("umount", "-l", path)


def test_a_store_opened_for_reading_leaves_no_trace(tiered, open_tiered, tmp_path, archive):
    tiered.close()
    before = _listing(tmp_path / "tiered"), _listing(archive)

    store = open_tiered(read_only=True)
    assert store.artifacts.get("t/w/cold") == CONTENT
    with pytest.raises(Denied):
        store.artifacts.put("t/w/new", CONTENT[1:], tier="warm")
    store.close()

    assert (_listing(tmp_path / "tiered"), _listing(archive)) == before


def test_a_tier_used_before_there_were_identities_gets_one(path):
    with open_store(path) as store:
        store.artifacts.put("t/w/a", CONTENT)
        store.engine.txn(lambda tx: tx.delete(b"Mtiers"))
    (path / "tiers/hot/kvstate-tier").unlink()

    with open_store(path) as store:
        assert (path / "tiers/hot/kvstate-tier").exists()
        assert not (path / "tiers/cold/kvstate-tier").exists()
        assert store.artifacts.get("t/w/a") == CONTENT
        assert store.check(verify=True).clean


def test_a_store_that_was_used_can_give_an_unused_tier_another_folder(path, tmp_path):
    with open_store(path) as store:
        store.artifacts.put("t/w/a", CONTENT)

    with open_store(path, settings=_cold(tmp_path / "cold")) as store:
        store.artifacts.move("t/w/a", "cold")
        assert store.check(verify=True).clean

    assert (tmp_path / "cold/kvstate-tier").exists()
    assert list((path / "tiers/cold").iterdir()) == []
