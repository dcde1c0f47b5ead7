"""What the kernel keeps stays true: which notices each commit by anybody else brings."""

from __future__ import annotations

import os
import threading

import pytest

from kvstate.errors import Compacted, Unavailable
from tests.unit.kernel_peer import HOUR, ROOT, mounting

PATH = "all/acme/weekly/a"
NAME = "acme/weekly/a"


@pytest.fixture
def other(store, tmp_path, clock, open_checked):
    """The same store, as another process has it open."""
    store.artifacts.put(NAME, b"first content")
    store.artifacts.put("acme/weekly/b", b"another")
    store.namespace("ci").set("key", "first")
    return open_checked(tmp_path / "store", clock=clock)


@pytest.fixture
def mount():
    with mounting() as mounts:
        yield mounts


@pytest.fixture
def kernel(store, other, mount):
    return mount(store)


def entries(*places):
    return sorted((("entry", entry.number, name) for entry, name in places), key=repr)


# What another door changes


def test_a_name_that_leads_to_new_content_is_taken_back(kernel, other):
    folder = kernel.walk("all/acme/weekly")
    kernel.lookup(folder.number, "a")

    other.artifacts.put(NAME, b"second content")

    assert kernel.told() == entries((folder, "a"))


def test_names_in_all_views_are_taken_back(kernel, other):
    folders = [kernel.walk(f"{view}/acme/weekly") for view in ("hot", "all")]
    for folder in folders:
        kernel.lookup(folder.number, "a")

    other.artifacts.put(NAME, b"second content")

    assert kernel.told() == entries(*((folder, "a") for folder in folders))


def test_a_move_takes_back_the_name_in_one_tier_and_its_absence_in_the_other(kernel, other):
    other.artifacts.put("acme/weekly/c", b"", tier="cold")
    hot, cold, both = (kernel.walk(f"{view}/acme/weekly") for view in ("hot", "cold", "all"))
    assert kernel.lookup(hot.number, "a").number
    assert kernel.lookup(cold.number, "a").number == 0
    assert kernel.lookup(both.number, "a").number
    kernel.told()

    other.artifacts.move(NAME, "cold")

    assert [each for each in kernel.told() if each[0] == "entry"] == entries(
        (hot, "a"), (cold, "a")
    )


def test_an_absent_name_that_comes_into_being_is_taken_back(kernel, other):
    folder = kernel.walk("all/acme/weekly")
    assert kernel.lookup(folder.number, "new").number == 0

    other.artifacts.put("acme/weekly/new", b"")

    assert kernel.told() == entries((folder, "new"))
    assert kernel.lookup(folder.number, "new").number


def test_an_absent_folder_that_comes_into_being_is_taken_back(kernel, other):
    tenant = kernel.walk("all/acme")
    assert kernel.lookup(tenant.number, "daily").number == 0

    other.artifacts.put("acme/daily/deep/er/file", b"")

    assert kernel.told() == entries((tenant, "daily"))


def test_a_name_that_is_gone_is_taken_back(kernel, other):
    folder = kernel.walk("all/acme/weekly")
    kernel.lookup(folder.number, "a")

    other.artifacts.delete(NAME)

    assert kernel.told() == entries((folder, "a"))
    assert kernel.lookup(folder.number, "a").number == 0


def test_both_names_of_a_rename_are_taken_back(kernel, other):
    folder = kernel.walk("all/acme/weekly")
    kernel.lookup(folder.number, "a")
    kernel.lookup(folder.number, "c")

    other.artifacts.rename(NAME, "acme/weekly/c")

    assert kernel.told() == entries((folder, "a"), (folder, "c"))


def test_a_renamed_folder_takes_its_name_back(kernel, other):
    tenant = kernel.walk("all/acme")
    kernel.walk(PATH)

    other.artifacts.rename("acme/weekly", "acme/monthly")

    assert ("entry", tenant.number, "weekly") in kernel.told()


def test_a_key_that_changes_takes_its_name_back(kernel, other):
    folder = kernel.walk("state/ci")
    kernel.lookup(folder.number, "key")
    assert kernel.lookup(folder.number, "none").number == 0

    other.namespace("ci").set("key", "second")
    other.namespace("ci").set("none", 1)

    assert kernel.told() == entries((folder, "key"), (folder, "none"))


def test_a_namespace_that_comes_into_being_takes_its_absence_back(kernel, other):
    state = kernel.walk("state")
    assert kernel.lookup(state.number, "new").number == 0

    other.make_namespace("new")

    assert kernel.told() == entries((state, "new"))


def test_other_attributes_bring_a_notice_that_leaves_the_pages(kernel, other, mount):
    entry = kernel.walk(PATH)
    elsewhere = mount(other)

    elsewhere.setattr(elsewhere.walk(PATH).number, valid=1, mode=0o600)

    assert kernel.told() == [("inode", entry.number, (-1, 0))]
    assert kernel.getattr(entry.number).mode & 0o777 == 0o600


def test_growth_brings_a_notice_that_leaves_name_and_pages(kernel, other, mount):
    entry = kernel.walk(PATH)
    elsewhere = mount(other)

    theirs, appending = elsewhere.open_path(PATH, os.O_WRONLY | os.O_APPEND)
    elsewhere.write(theirs.number, appending.handle, b" and more")
    elsewhere.close(theirs.number, appending.handle)

    assert kernel.told() == [("inode", entry.number, (-1, 0))]
    assert kernel.getattr(entry.number).size == 22


def test_names_that_were_never_told_bring_no_notices(kernel, other):
    kernel.walk("all/acme/weekly")
    kernel.walk("state")

    other.artifacts.put(NAME, b"second content")
    other.artifacts.put("beta/daily/x", b"")
    other.namespace("ci").set("key", "second")

    assert kernel.told() == []


def test_names_that_were_forgotten_bring_no_notices(kernel, other):
    kernel.forget(kernel.walk(PATH).number, 1)

    other.artifacts.put(NAME, b"second content")

    assert kernel.told() == []


def test_a_name_is_taken_back_once(kernel, other):
    kernel.walk(PATH)
    other.artifacts.put(NAME, b"second content")
    assert len(kernel.told()) == 1

    other.artifacts.put(NAME, b"third content")

    assert kernel.told() == []


def test_names_that_a_listing_told_are_taken_back(kernel, other):
    folder = kernel.walk("all/acme/weekly")
    kernel.listing(folder.number, plus=True)

    other.artifacts.put(NAME, b"second content")
    other.artifacts.delete("acme/weekly/b")

    told = kernel.told()
    assert [notice for notice in told if notice[0] == "entry"] == entries(
        (folder, "a"), (folder, "b")
    )
    assert ("inode", folder.number, (0, 0)) in told


def test_names_that_a_listing_without_attributes_gave_are_not_but_the_listing_is(kernel, other):
    folder = kernel.walk("all/acme/weekly")
    kernel.listing(folder.number)

    other.artifacts.put(NAME, b"second content")

    assert kernel.told() == [("inode", folder.number, (0, 0))]


def test_a_thousand_commits_are_looked_at_in_order(kernel, other):
    folder = kernel.walk("state/ci")
    names = [f"key-{number}" for number in range(300)]
    for name in names:
        assert kernel.lookup(folder.number, name).number == 0

    with other.transaction() as transaction:
        for name in names:
            transaction.namespace("ci").set(name, 1)

    assert kernel.told() == entries(*((folder, name) for name in names))


# What this mount changes itself


@pytest.fixture
def late_feed(kernel, other, monkeypatch):
    """Nobody looks at commits until this is set: a look in the middle of an operation tells more.

    What it tells then is needless, and does no harm.
    """
    store, waiting, go_on = kernel.tree.store, threading.Event(), threading.Event()
    wait = store.wait

    def wait_late(*arguments):
        waiting.set()
        assert go_on.wait(60)
        return wait(*arguments)

    monkeypatch.setattr(store, "wait", wait_late)
    other.namespace("ci")["something"] = 1
    assert waiting.wait(20)
    yield go_on
    go_on.set()


def test_what_the_kernel_asked_for_brings_no_notice(kernel, late_feed):
    folder = kernel.walk("all/acme/weekly").number
    kernel.walk(PATH)
    kernel.put(folder, "new", b"data")
    kernel.rename(folder, "new", folder, "newer")
    kernel.mkdir(kernel.walk("all/acme").number, "daily")
    kernel.unlink(folder, "newer")
    late_feed.set()

    assert [each for each in kernel.told() if each[0] == "entry"] == []


def test_writing_through_the_kernel_leaves_the_name_to_it(kernel, late_feed):
    entry, writing = kernel.open_path(PATH, os.O_WRONLY | os.O_TRUNC)
    kernel.write(entry.number, writing.handle, b"second")
    kernel.close(entry.number, writing.handle)
    late_feed.set()

    assert [each for each in kernel.told() if each[0] == "entry"] == []


def test_the_kernel_hears_of_its_own_changes_in_the_other_views(kernel, late_feed):
    hot, both = (kernel.walk(f"{view}/acme/weekly") for view in ("hot", "all"))
    assert kernel.lookup(hot.number, "new").number == 0

    kernel.put(both.number, "new", b"data")
    late_feed.set()

    assert [each for each in kernel.told() if each[0] == "entry"] == entries((hot, "new"))


def test_a_removal_in_one_view_takes_back_the_name_in_the_others(kernel, late_feed):
    hot, both = (kernel.walk(f"{view}/acme/weekly") for view in ("hot", "all"))
    kernel.lookup(hot.number, "a")
    kernel.lookup(both.number, "a")

    kernel.unlink(both.number, "a")
    late_feed.set()

    assert [each for each in kernel.told() if each[0] == "entry"] == entries((hot, "a"))


# Answers that are overtaken


class Hold:
    """Stops one call in the middle: between what it found and what is made of it."""

    def __init__(self, function, wanted):
        self.function = function
        self.wanted = wanted
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._first = threading.Lock()

    def __call__(self, *arguments):
        found = self.function(*arguments)
        if arguments[-1] == self.wanted and self._first.acquire(blocking=False):
            self.reached.set()
            assert self.go_on.wait(20)
        return found


def test_an_answer_that_a_commit_overtook_is_taken_back(kernel, other, monkeypatch):
    folder = kernel.walk("all/acme/weekly")
    hold = Hold(kernel.tree.lookup, "a")
    monkeypatch.setattr(kernel.tree, "lookup", hold)

    unique = kernel.send(1, folder.number, b"a\0")
    assert hold.reached.wait(20)
    other.artifacts.put(NAME, b"second content")
    assert kernel.service.mounted.feed.settle(20)
    hold.go_on.set()

    assert kernel.answer(unique).error == 0
    kernel.wait_for_notice("entry", folder.number, "a")


def test_an_absence_that_a_commit_overtook_is_taken_back(kernel, other, monkeypatch):
    folder = kernel.walk("all/acme/weekly")

    def hold(*arguments):
        try:
            return lookup(*arguments)
        except FileNotFoundError:
            if arguments[-1] == "new" and first.acquire(blocking=False):
                reached.set()
                assert go_on.wait(20)
            raise

    lookup, first = kernel.tree.lookup, threading.Lock()
    reached, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(kernel.tree, "lookup", hold)
    unique = kernel.send(1, folder.number, b"new\0")
    assert reached.wait(20)
    other.artifacts.put("acme/weekly/new", b"")
    assert kernel.service.mounted.feed.settle(20)
    go_on.set()

    assert kernel.answer(unique).error == 0
    kernel.wait_for_notice("entry", folder.number, "new")


def test_a_listing_that_a_commit_overtook_is_taken_back(kernel, other, monkeypatch):
    folder = kernel.walk("all/acme/weekly")
    handle = kernel.opendir(folder.number)
    reached, go_on = threading.Event(), threading.Event()
    tell = kernel.service.mounted.table.tell

    def hold(*told):
        if not reached.is_set():
            reached.set()
            assert go_on.wait(20)
        return tell(*told)

    monkeypatch.setattr(kernel.service.mounted.table, "tell", hold)
    pages = []
    asking = threading.Thread(
        target=lambda: pages.append(kernel.page(folder.number, handle, 0, 4096, plus=True))
    )
    asking.start()
    assert reached.wait(20)
    other.artifacts.put(NAME, b"second content")
    assert kernel.service.mounted.feed.settle(20)
    go_on.set()
    asking.join(20)

    assert [each.name for each in pages[0]] == [".", "..", "a", "b"]
    kernel.wait_for_notice("entry", folder.number, "a")


# When changes cannot be followed


@pytest.fixture
def failing(kernel, monkeypatch):
    """A journal that cannot be read until this is called."""
    names = kernel.tree.store.changed_names
    asked, broken = threading.Event(), threading.Event()
    broken.set()

    def changed_names(since):
        if broken.is_set():
            asked.set()
            raise Unavailable("the journal", "a test says so")
        return names(since)

    monkeypatch.setattr(kernel.tree.store, "changed_names", changed_names)

    def begin(other):
        other.namespace("ci").set("something", 1)
        assert asked.wait(20)

    begin.end = broken.clear
    return begin


def test_when_changes_cannot_be_followed_all_is_taken_back(kernel, other, failing):
    folder = kernel.walk("all/acme/weekly")
    kernel.lookup(folder.number, "a")
    kernel.lookup(folder.number, "none")

    failing(other)

    kernel.wait_for_notice("entry", ROOT, "all")
    kernel.wait_for_notice("entry", folder.number, "a")
    kernel.wait_for_notice("entry", folder.number, "none")


def test_when_changes_cannot_be_followed_answers_hold_for_no_time(kernel, other, failing):
    failing(other)
    kernel.walk("all")
    deadline = threading.Event()
    while kernel.service.mounted.feed.coherent:
        assert not deadline.wait(0.001)

    entry = kernel.walk(PATH)

    assert (entry.valid, entry.stat.valid) == (0, 0)
    assert kernel.lookup(kernel.walk("all/acme").number, "none").valid == 0
    assert kernel.getattr(entry.number).valid == 0


def test_when_changes_can_be_followed_again_answers_hold_again(kernel, other, failing):
    failing(other)
    other.artifacts.put(NAME, b"second content")

    failing.end()
    kernel.settle()
    feed = kernel.service.mounted.feed
    while not feed.coherent:
        kernel.settle()

    entry, opened = kernel.open_path(PATH)
    assert entry.valid == HOUR
    assert kernel.read(entry.number, opened.handle) == b"second content"
    other.artifacts.put(NAME, b"third content")
    assert any(each[0] == "entry" and each[2] == "a" for each in kernel.told())


def test_a_journal_that_was_trimmed_too_early_takes_all_back(kernel, other, monkeypatch):
    folder = kernel.walk("all/acme/weekly")
    kernel.lookup(folder.number, "a")
    names, asked = kernel.tree.store.changed_names, threading.Event()

    def changed_names(since):
        if not asked.is_set():
            asked.set()
            raise Compacted(1, 2)
        return names(since)

    monkeypatch.setattr(kernel.tree.store, "changed_names", changed_names)
    other.artifacts.put(NAME, b"second content")

    kernel.wait_for_notice("entry", folder.number, "a")
    entry, opened = kernel.open_path(PATH)
    assert kernel.read(entry.number, opened.handle) == b"second content"


def test_a_listing_that_was_read_whole_is_not_given_after_a_change(kernel, other):
    folder = kernel.walk("all/acme/weekly")
    assert [each.name for each in kernel.listing(folder.number)][2:] == ["a", "b"]
    assert [each.name for each in kernel.listing(folder.number)][2:] == ["a", "b"]

    other.artifacts.put("acme/weekly/c", b"")

    assert [each.name for each in kernel.listing(folder.number)][2:] == ["a", "b", "c"]


def test_a_key_that_has_expired_is_not_listed_again(kernel, other, clock):
    other.namespace("ci").set("short", 1, ttl=10)
    other.namespace("ci").set("long", 1)
    folder = kernel.walk("state/ci")
    assert {"short", "long"} <= {each.name for each in kernel.listing(folder.number)}

    clock.advance(11)

    assert "short" not in {each.name for each in kernel.listing(folder.number)}
