"""`.kvstate/`: what the store says of itself."""

from __future__ import annotations

import errno
import json
import os

import pytest

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


@pytest.mark.parametrize("name", ["stats.json", "journal.jsonl"])
def test_they_cannot_be_written(walker, name):
    with pytest.raises(PermissionError):
        walker.open(f".kvstate/{name}", os.O_WRONLY)


def test_the_disk_is_the_one_below_the_store(walker, store):
    assert walker.tree.statfs().f_fsid == os.statvfs(store.path).f_fsid
