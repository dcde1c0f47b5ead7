"""Who waits, and who does not: a tier that hangs, commits that take long, readers that follow."""

from __future__ import annotations

import errno
import os
import struct
import threading

import pytest

from kvstatefs.handles import ReadingHandle
from kvstatefs.kernel.wire import Code
from tests.harness import wait_for
from tests.unit.kernel_peer import ROOT, mounting
from tests.unit.walker import refused

LARGE = os.urandom(200_000)
MANY = 30


class HangingHandle(ReadingHandle):
    """Reads of a disk that does not answer until it is told to."""

    slow = True

    def __init__(self, handle):
        self.handle = handle
        self.content = handle.content
        self.asked = []
        self.go_on = threading.Event()

    def read(self, offset, size):
        self.asked.append(offset)
        assert self.go_on.wait(60)
        return self.handle.read(offset, size)

    def attributes(self):
        return self.handle.attributes()

    def release(self):
        self.handle.release()


@pytest.fixture
def kernel(store):
    for tier in ("hot", "warm", "cold"):
        store.artifacts.put(f"acme/weekly/{tier}", LARGE, tier=tier)
        store.artifacts.put(f"acme/weekly/small-{tier}", b"small", tier=tier)
    with mounting() as mount:
        yield mount(store)


@pytest.fixture
def hang(kernel):
    """Let the reads of a file hang until the test is over, or until they are let go."""
    handles = []

    def hang(opened):
        file = kernel.files.get(opened.handle)
        file.handle = HangingHandle(file.handle)
        handles.append(file.handle)
        return file.handle

    yield hang
    for handle in handles:
        handle.go_on.set()


@pytest.fixture
def hanging(kernel, hang):
    """A file in the warm tier, whose reads hang, and more of them than the tier has threads."""
    entry, opened = kernel.open_path("all/acme/weekly/warm")
    handle = hang(opened)
    uniques = [kernel.send_read(entry.number, opened.handle, at, 1) for at in range(MANY)]
    lane = kernel.service.lanes.tiers[1]
    wait_for(lambda: len(handle.asked) + len(lane.waiting) == MANY)
    return handle, uniques


def test_a_tier_that_hangs_keeps_a_few_threads_and_no_more(kernel, hanging):
    handle, _ = hanging

    assert 0 < len(handle.asked) < MANY
    assert len(handle.asked) == kernel.service.lanes.tiers[1].threads


def test_a_tier_that_hangs_holds_up_no_lookups(kernel, hanging):
    assert kernel.walk("warm/acme/weekly/small-warm").number
    assert kernel.walk("all/acme/weekly/none").number == 0
    assert kernel.getattr(kernel.walk("all/acme/weekly/warm").number).size == len(LARGE)
    assert len(kernel.listing(kernel.walk("all/acme/weekly").number)) == 8


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_a_tier_that_hangs_holds_up_no_reads_of_others(kernel, hanging, tier):
    entry, opened = kernel.open_path(f"all/acme/weekly/{tier}")

    assert kernel.read(entry.number, opened.handle, 1000, 1000) == LARGE[1000:2000]


def test_a_tier_that_hangs_holds_up_no_reads_of_what_lies_in_the_records(kernel, hanging):
    entry, opened = kernel.open_path("all/acme/weekly/small-warm")

    assert kernel.read(entry.number, opened.handle) == b"small"


def test_a_tier_that_hangs_holds_up_no_writing(kernel, hanging, store):
    kernel.put(kernel.walk("all/acme/weekly").number, "new", b"data")

    assert store.artifacts.open("acme/weekly/new", "rb").read() == b"data"


def test_a_tier_that_answers_again_answers_all_who_waited(kernel, hanging):
    handle, uniques = hanging

    handle.go_on.set()

    assert [kernel.answer(unique).body for unique in uniques] == [
        LARGE[at : at + 1] for at in range(MANY)
    ]
    kernel.settle()
    assert all(len(kernel.answers[unique]) == 1 for unique in uniques)


def test_two_tiers_that_hang_leave_the_third(kernel, hanging, hang):
    entry, opened = kernel.open_path("all/acme/weekly/cold")
    handle = hang(opened)
    for at in range(MANY):
        kernel.send_read(entry.number, opened.handle, at, 1)
    wait_for(lambda: len(handle.asked) == kernel.service.lanes.tiers[2].threads)

    entry, opened = kernel.open_path("all/acme/weekly/hot")

    assert kernel.read(entry.number, opened.handle, 0, 9) == LARGE[:9]


# Interrupts


def interrupt(kernel, unique):
    kernel.send(Code.INTERRUPT, 0, struct.pack("=Q", unique), unique=unique | 1)


def test_who_waits_for_a_thread_is_interrupted_at_once(kernel, hanging):
    handle, uniques = hanging

    interrupt(kernel, uniques[-1])

    assert kernel.answer(uniques[-1]).error == errno.EINTR
    handle.go_on.set()
    for unique in uniques[:-1]:
        assert kernel.answer(unique).error == 0
    kernel.settle()
    assert len(handle.asked) == MANY - 1
    assert all(len(kernel.answers[unique]) == 1 for unique in uniques)


def test_what_is_under_way_is_answered_whatever_interrupts_it(kernel, hanging):
    handle, uniques = hanging

    interrupt(kernel, uniques[0])
    handle.go_on.set()

    assert kernel.answer(uniques[0]) == (0, LARGE[:1])
    kernel.settle()
    assert len(kernel.answers[uniques[0]]) == 1


def test_all_who_wait_can_be_interrupted_in_any_order(kernel, hanging):
    handle, uniques = hanging
    waiting = uniques[len(handle.asked) :]

    for unique in reversed(waiting):
        interrupt(kernel, unique)

    assert {kernel.answer(unique).error for unique in waiting} == {errno.EINTR}
    handle.go_on.set()
    assert kernel.service.loop.settle(20)


# Commits


def test_commits_that_hang_hold_up_nobody_who_reads(kernel, monkeypatch):
    go_on, begun = threading.Event(), []
    mkdir = kernel.tree.mkdir

    def hang(*arguments):
        begun.append(arguments)
        assert go_on.wait(60)
        return mkdir(*arguments)

    monkeypatch.setattr(kernel.tree, "mkdir", hang)
    tenant = kernel.walk("all/acme").number
    try:
        uniques = [
            kernel.send(Code.MKDIR, tenant, struct.pack("=II", 0o755, 0) + b"f%d\0" % number)
            for number in range(MANY)
        ]
        wait_for(lambda: len(begun) == kernel.service.lanes.commits.threads)

        entry, opened = kernel.open_path("all/acme/weekly/hot")
        assert kernel.read(entry.number, opened.handle, 0, 9) == LARGE[:9]
    finally:
        go_on.set()
    assert [kernel.answer(unique).error for unique in uniques] == [0] * MANY


def test_a_file_that_is_being_stored_holds_up_nobody_who_reads(kernel, monkeypatch, store):
    go_on, begun = threading.Event(), threading.Event()
    commit = store.artifacts.commit_file

    def hang(*arguments, **others):
        begun.set()
        assert go_on.wait(60)
        return commit(*arguments, **others)

    made, writing = kernel.create(kernel.walk("all/acme/weekly").number, "new")
    kernel.write(made.number, writing.handle, b"data")
    with monkeypatch.context() as patch:
        patch.setattr(store.artifacts, "commit_file", hang)
        unique = kernel.send(Code.FLUSH, made.number, struct.pack("=QIIQ", writing.handle, 0, 0, 0))
        try:
            assert begun.wait(20)
            entry, opened = kernel.open_path("all/acme/weekly/hot")
            assert kernel.read(entry.number, opened.handle, 0, 9) == LARGE[:9]
        finally:
            go_on.set()
        assert kernel.answer(unique).error == 0


@pytest.mark.parametrize("what", ["getattr", "lookup", "open", "write", "listing"])
def test_who_waits_for_a_file_that_is_being_stored_holds_up_nobody_else(
    kernel, monkeypatch, store, what
):
    go_on, begun = threading.Event(), threading.Event()
    commit = store.artifacts.commit_file

    def hang(*arguments, **others):
        begun.set()
        assert go_on.wait(60)
        return commit(*arguments, **others)

    weekly = kernel.walk("all/acme/weekly").number
    made, writing = kernel.create(weekly, "new")
    kernel.write(made.number, writing.handle, b"data")
    flush = struct.pack("=QIIQ", writing.handle, 0, 0, 0)
    requests = {
        "getattr": (Code.GETATTR, made.number, bytes(16)),
        "lookup": (Code.LOOKUP, weekly, b"new\0"),
        "open": (Code.OPEN, made.number, struct.pack("=II", os.O_WRONLY | os.O_TRUNC, 0)),
        "write": (
            Code.WRITE,
            made.number,
            struct.pack("=QQIIQII", writing.handle, 4, 4, 0, 0, 0, 0) + b"more",
        ),
        "listing": (Code.READDIRPLUS, weekly, struct.pack("=QQIIQII", 0, 0, 4096, 0, 0, 0, 0)),
    }
    with monkeypatch.context() as patch:
        patch.setattr(store.artifacts, "commit_file", hang)
        storing = kernel.send(Code.FLUSH, made.number, flush)
        try:
            assert begun.wait(20)
            waiting = kernel.send(*requests[what])
            assert kernel.walk("all/acme/weekly/small-hot").size == 5
        finally:
            go_on.set()
        assert kernel.answer(storing).error == 0
        assert kernel.answer(waiting).error == 0


# When something fails that serves all


def test_a_record_that_cannot_be_read_fails_its_own_request_alone(kernel, monkeypatch):
    entry = kernel.walk("all/acme/weekly/hot")

    def fail(_identity):
        raise OSError(errno.EIO, "damaged")

    with monkeypatch.context() as patch:
        patch.setattr(kernel.tree.files.records, "fetch", fail)
        with refused(errno.EIO):
            kernel.ask(Code.OPEN, entry.number, struct.pack("=II", os.O_RDONLY, 0))

    opened = kernel.open(entry.number)
    assert kernel.read(entry.number, opened.handle, 0, 9) == LARGE[:9]


def test_all_is_answered_when_there_are_no_more_threads(kernel, monkeypatch):
    weekly = kernel.walk("all/acme/weekly").number
    paths = [f"all/acme/weekly/{tier}" for tier in ("hot", "warm", "cold")]
    numbers = [kernel.walk(path).number for path in paths]

    def fail(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        opens = [
            kernel.send(Code.OPEN, number, struct.pack("=II", os.O_RDONLY, 0)) for number in numbers
        ]
        assert [kernel.answer(unique).error for unique in opens] == [0, 0, 0]
        kernel.put(weekly, "new", b"data")

    assert kernel.walk("all/acme/weekly/new").size == 4


# Following the journal


@pytest.fixture
def following(kernel, store):
    """A reader at the end of the journal, who has been told once that this is the end."""
    store.namespace("ci")["first"] = 1
    entry, opened = kernel.open_path(".kvstate/journal.jsonl")
    end = 0
    while data := kernel.read(entry.number, opened.handle, end):
        end += len(data)
    unique = kernel.send_read(entry.number, opened.handle, end)
    kernel.settle()
    assert not kernel.answered(unique)
    return entry.number, opened.handle, end, unique


def test_who_reads_on_at_the_end_of_the_journal_waits_for_the_next_commit(kernel, following, store):
    unique = following[3]

    store.namespace("ci")["second"] = 2

    assert b'"second"' in kernel.answer(unique).body
    kernel.settle()
    assert len(kernel.answers[unique]) == 1


def test_who_waits_for_the_next_commit_keeps_no_thread(kernel, following, store):
    number, handle, end, _ = following
    uniques = [kernel.send_read(number, handle, end) for _ in range(MANY)]
    kernel.settle()
    assert not any(map(kernel.answered, uniques))
    assert kernel.walk(".kvstate/stats.json").number

    store.namespace("ci")["second"] = 2

    assert all(b'"second"' in kernel.answer(unique).body for unique in uniques)


def test_who_waits_for_the_next_commit_can_be_interrupted(kernel, following, store):
    unique = following[3]

    interrupt(kernel, unique)

    assert kernel.answer(unique).error == errno.EINTR
    store.namespace("ci")["second"] = 2
    kernel.settle()
    assert len(kernel.answers[unique]) == 1


def test_a_commit_between_looking_and_waiting_is_not_missed(kernel, following, store):
    number, handle, end, unique = following
    file = kernel.files.get(handle)
    blocks, done = file.handle.blocks, threading.Event()

    def commit_after(offset):
        found = blocks(offset)
        if not done.is_set():
            done.set()
            store.namespace("ci")["second"] = 2
            assert b'"second"' in kernel.answer(unique).body  # who waited before has been told
        return found

    file.handle.blocks = commit_after
    late = kernel.send_read(number, handle, end)

    assert b'"second"' in kernel.answer(late).body


def test_a_follower_whose_journal_cannot_be_read_is_told(kernel, following, store):
    _, handle, _, unique = following
    file = kernel.files.get(handle)

    def lost(*_):
        raise OSError(errno.ESTALE, "trimmed")

    file.handle.read = lost
    store.namespace("ci")["second"] = 2

    assert kernel.answer(unique).error == errno.ESTALE


# Ending


def test_a_mount_that_is_stopped_brings_what_is_under_way_to_an_end(kernel, hanging):
    handle, uniques = hanging
    kernel.link.stop_wanted(20.0)
    assert not kernel.serving.wait(0.05)

    handle.go_on.set()

    assert kernel.serving.wait(20)
    assert all(kernel.answer(unique).error == 0 for unique in uniques)


def test_a_busy_mount_is_not_handed_over(kernel, hanging):
    kernel.link.upgrade_wanted(0.05)

    wait_for(lambda: ("refused", "it is busy") in kernel.link.said)
    assert not kernel.link.handed_over
    assert kernel.getattr(ROOT).links


def test_a_mount_with_writers_is_not_handed_over(kernel):
    made, writing = kernel.create(kernel.walk("all/acme/weekly").number, "new")

    kernel.link.upgrade_wanted(0.05)
    wait_for(lambda: ("refused", "1 files are open for writing") in kernel.link.said)

    kernel.close(made.number, writing.handle)
    kernel.link.upgrade_wanted(20.0)
    wait_for(lambda: kernel.link.handed_over)


def test_a_handing_over_that_is_called_off_goes_on_serving(kernel):
    made, writing = kernel.create(kernel.walk("all/acme/weekly").number, "new")
    kernel.link.upgrade_wanted(3600.0)

    kernel.link.upgrade_called_off()
    kernel.close(made.number, writing.handle)

    assert kernel.walk("all/acme/weekly/new").number == made.number
    with refused(errno.ENOENT):
        kernel.unlink(kernel.walk("all/acme/weekly").number, "none")
