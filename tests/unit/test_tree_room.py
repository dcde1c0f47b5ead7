"""What statfs says: the truth about disks, floors and quotas; without a mount."""

from __future__ import annotations

import os

import pytest

from kvstate.settings import StoreSettings, TierSettings
from tests.unit.walker import Walker

FLOOR = 64 << 20
LARGE = os.urandom(200_000)


@pytest.fixture
def store(tmp_path, clock, open_checked):
    tiers = tuple(TierSettings(free_bytes_min=FLOOR * number) for number in range(3))
    return open_checked(tmp_path / "store", clock=clock, settings=StoreSettings(tiers=tiers))


@pytest.fixture
def walker(store):
    walker = Walker(store)
    walker.folders("all/acme/weekly")
    walker.write("all/acme/weekly/a", LARGE)
    return walker


def room(walker, path):
    found = walker.tree.statfs(walker.node(path))
    return found.f_bavail * found.f_frsize


def test_a_view_has_the_room_of_its_tiers_disk_above_the_floor(walker):
    rooms = [room(walker, tier) for tier in ("hot", "warm", "cold")]

    assert rooms[0] - rooms[1] == pytest.approx(FLOOR, abs=16 << 20)
    assert rooms[1] - rooms[2] == pytest.approx(FLOOR, abs=16 << 20)
    assert room(walker, "all") == pytest.approx(rooms[0], abs=16 << 20)
    assert room(walker, "") == pytest.approx(rooms[0], abs=16 << 20)


def test_it_has_the_size_of_the_disk(walker, tmp_path):
    disk, found = os.statvfs(tmp_path), walker.tree.statfs(walker.node("hot/acme"))

    assert (found.f_blocks, found.f_frsize) == (disk.f_blocks, disk.f_frsize)
    assert (found.f_namemax, found.f_bfree <= disk.f_bfree + 4096) == (255, True)


def test_a_tenants_quota_is_all_the_room_it_has(walker, store):
    quota = {"bytes_max": 1_000_000, "artifacts_max": 3}
    store.lifecycle.configure(tenants={"acme": quota})
    handle = walker.create("all/acme/weekly/b")

    for path in ("all/acme", "hot/acme/weekly", "all/acme/weekly/a", "all/acme/weekly/b"):
        found = walker.tree.statfs(walker.node(path))
        size = found.f_blocks * found.f_frsize
        assert size - 1_000_000 in range(found.f_frsize)
        assert 800_000 - room(walker, path) in range(found.f_frsize)
        assert (found.f_files, found.f_ffree) == (3, 2)
    assert room(walker, "all") > 1_000_000
    handle.release()


def test_a_quota_that_is_used_up_leaves_nothing(walker, store):
    store.lifecycle.configure(tenants={"acme": {"bytes_max": 1}})

    assert room(walker, "all/acme") == 0


def test_a_namespaces_quota_is_all_the_room_it_has(walker, store):
    store.configure("prs", bytes_max=50_000, keys_max=10)
    store.namespace("prs").set("one", "x" * 1000)

    found = walker.tree.statfs(walker.node("state/prs/one"))

    assert room(walker, "state/prs") <= 49_000
    assert (found.f_files, found.f_ffree) == (10, 9)
    assert room(walker, "state") > 50_000
