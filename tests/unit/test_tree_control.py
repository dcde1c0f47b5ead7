"""`.kvstate/`: what the store says of itself."""

from __future__ import annotations

import errno
import json
import os

import pytest

from kvstate.config import load
from kvstate.errors import Unavailable
from kvstate.settings import StoreSettings
from tests.unit.walker import Walker, refused


@pytest.fixture
def walker(store):
    return Walker(store)


def lines_of(content):
    return [json.loads(line) for line in content.splitlines()]


def test_the_statistics_are_json(walker, store):
    store.namespace("prs").set("a", 1)

    found = json.loads(walker.read(".kvstate/stats.json"))

    assert found["revision"] == store.revision()
    assert found["namespaces"] == 1


def test_the_journal_has_a_line_for_each_change(walker, store):
    store.namespace("prs").set("a", {"n": 1})
    store.artifacts.put("acme/weekly/report.md", b"text")

    found = lines_of(walker.read(".kvstate/journal.jsonl"))

    assert [(line["kind"], line["scope"], line["name"]) for line in found] == [
        ("create", "", ""),
        ("set", "prs", "a"),
        ("put", "", "acme/weekly/report.md"),
    ]
    assert found[1]["value"] == {"n": 1}


def test_the_journals_size_is_that_of_its_text(walker, store):
    store.namespace("prs").set("a", 1)

    assert walker.stat(".kvstate/journal.jsonl").size == len(walker.read(".kvstate/journal.jsonl"))


def test_who_has_the_journal_open_reads_what_is_committed_later(walker, store):
    handle = walker.open(".kvstate/journal.jsonl")
    size = len(handle.read(0, 1 << 20))

    store.namespace("prs").set("later", 1)

    assert [line["name"] for line in lines_of(handle.read(size, 1 << 20))] == ["later"]
    assert handle.attributes().size == walker.stat(".kvstate/journal.jsonl").size


def test_any_part_of_a_long_journal_can_be_read(walker, store):
    for number in range(100):
        store.namespace("prs").set(f"key{number}", "x" * 3000)
    whole = walker.read(".kvstate/journal.jsonl")

    handle = walker.open(".kvstate/journal.jsonl")

    assert len(whole) > 3 * 64 * 1024
    for offset in (0, 1, 65_535, 65_536, 200_000, len(whole) - 10):
        assert handle.read(offset, 70_000) == whole[offset : offset + 70_000]


class TestATrimmedJournal:
    @pytest.fixture
    def store(self, tmp_path, clock, open_checked):
        settings = StoreSettings(journal_bytes_max=1 << 16)
        return open_checked(tmp_path / "store", clock=clock, settings=settings)

    def grow(self, store):
        for number in range(200):
            store.namespace("prs").set(f"key{number}", "x" * 3000)

    def test_it_begins_at_what_is_left_for_who_opens_it_now(self, walker, store):
        walker.read(".kvstate/journal.jsonl")
        self.grow(store)

        found = lines_of(walker.read(".kvstate/journal.jsonl"))

        assert found[0]["revision"] > 1
        assert found[-1]["name"] == "key199"

    def test_its_lost_front_is_stale_for_who_had_it_open(self, walker, store):
        handle = walker.open(".kvstate/journal.jsonl")
        self.grow(store)

        with refused(errno.ESTALE):
            handle.read(0, 100)


class TestFollowingTheJournal:
    @pytest.fixture
    def handle(self, walker):
        return walker.open(".kvstate/journal.jsonl")

    def end_of(self, handle):
        return len(handle.read(0, 1 << 20))

    def test_the_first_read_at_the_end_is_told_so_and_the_next_may_wait(self, handle):
        end = self.end_of(handle)

        assert handle.waits
        assert [handle.blocks(end) for _ in range(3)] == [False, True, True]

    def test_a_read_before_the_end_never_waits(self, handle):
        end = self.end_of(handle)

        assert [handle.blocks(offset) for offset in (0, 0, end - 1, end - 1)] == [False] * 4
        assert not handle.at_end(end - 1)

    def test_there_is_nothing_to_wait_for_once_there_is_more(self, handle, store):
        end = self.end_of(handle)
        assert [handle.blocks(end), handle.blocks(end)] == [False, True]

        store.namespace("prs").set("later", 1)

        assert not handle.at_end(end)
        assert not handle.blocks(end)
        new_end = self.end_of(handle)
        assert [handle.blocks(new_end), handle.blocks(new_end)] == [False, True]


def test_the_configuration_is_one_that_the_store_would_accept(walker, store, tmp_path):
    store.lifecycle.configure(hot_days=2, tenants={"acme": {"cold_days": 400}})
    (tmp_path / "kvstate.toml").write_bytes(walker.read(".kvstate/config.toml"))

    found = load(None, tmp_path / "kvstate.toml", {}).store_settings()

    assert (found.hot_days, found.warm_days) == (2, 30)
    assert found.rules["tenants"] == {"acme": {"cold_days": 400}}
    assert found.tiers == store.settings.tiers


def test_the_health_is_json(walker, store):
    found = json.loads(walker.read(".kvstate/health"))

    assert (found["status"], found["problems"]) == ("ok", [])


def test_the_metrics_count_what_the_mount_did(walker, store):
    walker.tree.counts.did("read")
    walker.tree.counts.done["read"] += 1
    walker.tree.counts.failed("lookup", errno.ENOENT)

    found = walker.read(".kvstate/metrics").decode().splitlines()

    assert 'kvstate_mount_operations_total{operation="read"} 2.0' in found
    assert 'kvstate_mount_errors_total{errno="ENOENT",operation="lookup"} 1.0' in found


def test_a_store_that_does_not_answer_still_has_its_health(walker, store, monkeypatch):
    def gone():
        raise Unavailable("store", "its disk is gone")

    monkeypatch.setattr(store, "stats", gone)

    assert json.loads(walker.read(".kvstate/health"))["status"] == "failed"
    assert b'kvstate_health{status="failed"} 1.0' in walker.read(".kvstate/metrics")


FILES = ["config.toml", "health", "journal.jsonl", "metrics", "stats.json"]


def test_the_folder_lists_its_files_and_folders(walker):
    assert walker.names(".kvstate") == sorted([*FILES, "history", "meta", "trash"])
    for listed in (each for _, each in walker.tree.listing(walker.node(".kvstate")).entries()):
        found = walker.stat(f".kvstate/{listed.name}")
        assert (listed.inode, listed.mode) == (found.inode, found.mode)


@pytest.mark.parametrize("name", FILES)
def test_the_size_is_what_a_read_gives_right_after(walker, store, name):
    for number in range(10):
        size = walker.stat(f".kvstate/{name}").size
        if name != "journal.jsonl":
            store.namespace("prs").set(f"key{number}", "x" * number)
        handle = walker.open(f".kvstate/{name}")
        assert len(handle.read(0, 1 << 20)) == size == handle.attributes().size
        assert handle.content is None


@pytest.mark.parametrize("name", FILES)
def test_they_cannot_be_written(walker, name):
    with refused(errno.EACCES):
        walker.open(f".kvstate/{name}", os.O_WRONLY)
    with refused(errno.EACCES):
        walker.open(f".kvstate/{name}", os.O_RDONLY | os.O_TRUNC)
    with refused(errno.EACCES):
        walker.set(f".kvstate/{name}", size=0)
    with refused(errno.EBADF):
        walker.open(f".kvstate/{name}").write(0, b"x")
    with refused(errno.EPERM):
        walker.set(f".kvstate/{name}", mode=0o777)
    with refused(errno.ENOTSUP):
        walker.tree.setxattr(walker.node(f".kvstate/{name}"), "user.kvstate.ttl", b"1")
    with refused(errno.EPERM):
        walker.tree.setxattr(walker.node(f".kvstate/{name}"), "user.own", b"1")
    with refused(errno.EPERM):
        walker.unlink(f".kvstate/{name}")
    with refused(errno.EPERM):
        walker.rename(f".kvstate/{name}", ".kvstate/other")


@pytest.mark.parametrize("folder", ["", "history", "meta", "meta/all", "trash"])
def test_nothing_can_be_made_there(walker, folder):
    place = f".kvstate/{folder}/new".replace("//", "/")
    with refused(errno.EPERM):
        walker.mkdir(place)
    with refused(errno.EPERM):
        walker.create(place)
    with refused(errno.EPERM):
        walker.symlink("target", place)
    with refused(errno.ENOENT):
        walker.stat(place)
    with refused(errno.ENAMETOOLONG):
        walker.stat(place + "x" * 255)


def test_only_who_mounted_it_may_read_every_value(walker):
    assert walker.stat(".kvstate/journal.jsonl").mode & 0o777 == 0o400
    assert walker.stat(".kvstate/metrics").mode & 0o777 == 0o444


def test_the_disk_is_the_one_below_the_store(walker, store):
    assert walker.tree.statfs().f_fsid == os.statvfs(store.path).f_fsid
