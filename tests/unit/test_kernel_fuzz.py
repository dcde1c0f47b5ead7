"""Requests that no kernel sends: each is answered once, with an error that says what is wrong."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import resource
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstate.store import open_store
from kvstatefs.kernel.wire import Code
from tests.unit.kernel_peer import RESENT, ROOT, entry_of, mounting

SILENT = {Code.FORGET, Code.BATCH_FORGET, Code.NOTIFY_REPLY, Code.INTERRUPT}
CODES = [int(code) for code in Code if code != Code.INIT]
FILE_BYTES_MAX = 64 << 20
SMALL = [0, 1, 2, 3, 7, 39, 4096, 100_000]
NUMBERS = [*SMALL, 1 << 31, (1 << 32) - 1]
GIANTS = [1 << 63, (1 << 64) - 4096, (1 << 64) - 1]
"""No sizes in between: to make a file of exabytes takes its time."""
NAMES = [b"a", b"b", b"new", b"", b".", b"..", b"a/b", b"\xff\xfe", b"x" * 300, b"user.a", b"\n"]
LAYOUTS = {
    Code.LOOKUP: "n", Code.FORGET: "Q", Code.GETATTR: "IIH", Code.SETATTR: "IIHQQQQQIIIIIIII",
    Code.READLINK: "", Code.SYMLINK: "nn", Code.MKNOD: "IIIIn", Code.MKDIR: "IIn",
    Code.UNLINK: "n", Code.RMDIR: "n", Code.RENAME: "Nnn", Code.LINK: "Nn", Code.OPEN: "II",
    Code.READ: "HQIIQII", Code.WRITE: "HQIIQIIb", Code.STATFS: "", Code.RELEASE: "HIIQ",
    Code.FSYNC: "HII", Code.SETXATTR: "IInb", Code.GETXATTR: "IIn", Code.LISTXATTR: "II",
    Code.REMOVEXATTR: "n", Code.FLUSH: "HIIQ", Code.OPENDIR: "II", Code.READDIR: "HQIIQII",
    Code.RELEASEDIR: "HIIQ", Code.FSYNCDIR: "HII", Code.CREATE: "IIIIn", Code.INTERRUPT: "Q",
    Code.DESTROY: "", Code.BATCH_FORGET: "IINQ", Code.FALLOCATE: "HQQII",
    Code.READDIRPLUS: "HQIIQII", Code.RENAME2: "NIInn", Code.LSEEK: "HQII",
    Code.COPY_FILE_RANGE: "HQNHQQQ", Code.COPY_FILE_RANGE_64: "HQNHQQQ",
}  # fmt: skip
"""What a body consists of: handles, nodes, numbers of 8 and 4 bytes, names, bytes."""


class Fuzzed:
    """A mount, and what it was asked."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.store = kernel.tree.store
        self.uniques = itertools.count(1 << 20)
        self.asked = {}
        self.nodes, self.handles = [], []

    def renew(self):
        """Let there be nodes and open files, whatever became of those that were there."""
        kernel, store, place = self.kernel, self.store, f"acme/f{next(self.uniques)}"
        store.artifacts.put_many(
            (f"{place}/{name}", b"content of " + name.encode() * times)
            for name, times in (("a", 1), ("b", 1), ("gone", 1), ("written", 1), ("large", 20_000))
        )
        folder = kernel.walk(f"all/{place}").number
        link = kernel.ask(Code.SYMLINK, folder, b"link\0a\0")
        gone = kernel.lookup(folder, "gone").number
        kernel.forget(gone, 1)
        self.nodes = [folder, kernel.walk(f"hot/{place}").number, gone, entry_of(link).number]
        self.nodes += [entry.number for entry in map(kernel.walk, PATHS) if entry.number]
        self.handles = [0, 999, kernel.opendir(folder)]
        for name, flags in (("a", 0), ("large", 0), ("b", os.O_RDWR), ("written", os.O_RDWR)):
            entry, opened = kernel.open_path(f"all/{place}/{name}", flags)
            self.handles.append(opened.handle)
            self.nodes.append(entry.number)

    def send(self, code, node, body, *, length=None, flags=0):
        unique = next(self.uniques) * 2 | flags
        size = 40 + len(body) if length is None else length & 0xFFFF_FFFF
        head = struct.pack("=IIQQIIIHH", size, code, unique, node, 0, 0, os.getpid(), 0, 0)
        self.kernel.send_raw(head + body)
        self.asked[unique] = code

    def settle(self):
        """See that each request was answered as often as it is to be."""
        kernel = self.kernel
        kernel.settle()
        if kernel.service._parked:
            self.store.namespace("ci")["more"] = 1
            kernel.settle()
        assert not kernel.service._parked
        asked, self.asked = self.asked, {}
        for unique, code in asked.items():
            answers = kernel.answers.pop(unique, [])
            assert len(answers) == 1 or (code in SILENT and not answers), (code, answers)
            for answer in answers:
                assert 0 <= answer.error <= 4095, (code, answer)
                assert answer.error != errno.EIO, code
                assert not (answer.error and answer.body)


PATHS = ["all", "all/acme", "state", "state/ci", "state/ci/key", ".kvstate", "pipelines"]
PATHS += [".kvstate/journal.jsonl", ".kvstate/stats.json", "cold/acme"]


@pytest.fixture(scope="module")
def small_files():
    """Let no file grow large, whatever is asked: a disk is full before one would notice."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory, small_files):
    path = tmp_path_factory.mktemp("fuzz") / "store"
    with open_store(path) as store, mounting() as mount:
        store.artifacts.put("acme/weekly/cold", b"cold", tier="cold")
        store.namespace("ci").set("key", "value")
        kernel = mount(store)
        small_files()
        fuzzed = Fuzzed(kernel)
        fuzzed.renew()
        yield fuzzed
        kernel.stop()
        assert not store.check(verify=True).problems


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Nothing is logged that says that something was not foreseen."""
    caplog.set_level(logging.WARNING)
    yield
    for record in caplog.get_records("call"):
        assert record.exc_info is None
        message = record.getMessage()
        assert record.name != "kvstatefs" or "has no head" in message, message


def body_of(layout, draw):
    """Make a body of a layout; ``draw`` gives each part."""
    return b"".join(draw(part) for part in layout)


# Made by hypothesis

parts = {
    "I": st.sampled_from(NUMBERS).map(lambda number: struct.pack("=I", number)),
    "n": st.sampled_from(NAMES).map(lambda name: name + b"\0"),
    "b": st.binary(max_size=64),
}
nodes = st.integers(0, 40) | st.sampled_from([ROOT, 1 << 40, (1 << 64) - 1])


@st.composite
def requests(draw):
    code = draw(st.sampled_from(CODES) | st.integers(0, (1 << 32) - 1))
    giants = st.sampled_from(SMALL + GIANTS) | st.integers(0, 12)
    eights = giants.map(lambda number: struct.pack("=Q", number))
    layout = LAYOUTS.get(code, "b")
    body = body_of(layout, lambda part: draw(eights if part in "QHN" else parts[part]))
    shape = draw(st.sampled_from(["whole", "whole", "cut", "long", "random", "lying"]))
    length = None
    if shape == "cut":
        body = body[: draw(st.integers(0, max(0, len(body) - 1)))]
    elif shape == "long":
        body += draw(st.binary(min_size=1, max_size=40))
    elif shape == "random":
        body = draw(st.binary(max_size=100))
    elif shape == "lying":
        length = draw(st.sampled_from([0, 39, 40, 41 + len(body), (1 << 32) - 1]))
    if code == Code.INIT:
        code = Code.DESTROY
    return code, draw(nodes), body, length, draw(st.sampled_from([0, 0, RESENT]))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(requests(), min_size=1, max_size=12))
def test_whatever_is_asked_is_answered_once(fuzzed, several):
    for code, node, body, length, flags in several:
        fuzzed.send(code, node, body, length=length, flags=flags)
    fuzzed.settle()


# Made at random, nearer to what a kernel would ask


def near(chance, fuzzed):
    """Make a request of nodes and handles that are there, with here and there a wrong number."""
    code = chance.choice(CODES)

    def part(kind):
        if kind == "n":
            return chance.choice(NAMES) + b"\0"
        if kind == "b":
            return chance.randbytes(chance.choice([0, 1, 100, 5000]))
        if kind in "HNQ":
            likely = {"H": fuzzed.handles, "N": fuzzed.nodes, "Q": [0, 10, 4096]}[kind]
            numbers = chance.choices((likely, SMALL, GIANTS), (9, 2, 1))[0]
            return struct.pack("=Q", chance.choice(numbers))
        return struct.pack("=I", chance.choice([0, 0, 1, 2, 4, 16, 100, 4096, 0o644, 0o100644]))

    body = body_of(LAYOUTS.get(code, "b"), part)
    if code == Code.WRITE:
        data = body[40:]
        body = body[:16] + struct.pack("=I", len(data)) + body[20:]
    if chance.random() < 0.1:
        body = body[: chance.randrange(len(body) + 1)]
    node = chance.choice(fuzzed.nodes) if chance.random() < 0.9 else chance.randrange(1 << 64)
    return code, node, body


@pytest.mark.parametrize("seed", range(6))
def test_requests_with_wrong_numbers_are_answered_once(fuzzed, seed):
    chance = random.Random(seed)

    for _ in range(10):
        fuzzed.renew()
        for _ in range(40):
            fuzzed.send(*near(chance, fuzzed), flags=chance.choice([0, 0, 0, RESENT]))
        fuzzed.settle()


@pytest.mark.parametrize("code", sorted(LAYOUTS))
def test_a_request_that_is_cut_short_anywhere_is_answered_once(fuzzed, code):
    chance = random.Random(code)
    _, _, body = near(chance, fuzzed)
    body = body_of(LAYOUTS[code], lambda part: {"n": b"a\0", "b": b"x"}.get(part, bytes(8)))

    for size in range(len(body)):
        fuzzed.send(code, 1 << 50, body[:size])

    fuzzed.settle()


@pytest.mark.parametrize("size", range(1, 40))
def test_what_has_no_head_is_passed_over(fuzzed, size):
    unique = next(fuzzed.uniques)
    head = struct.pack("=IIQQIIIHH", 40, Code.DESTROY, unique, 1, 0, 0, 0, 0, 0)

    fuzzed.kernel.send_raw(head[:size])
    fuzzed.kernel.settle()

    assert not fuzzed.kernel.answered(unique)


@pytest.mark.parametrize("code", [Code.OPEN, Code.RELEASE])
def test_what_is_cut_short_is_not_filled_up_from_the_request_before(fuzzed, code):
    kernel = fuzzed.kernel
    entry, opened = kernel.open_path("all/acme/weekly/cold")
    before = kernel.files.get(opened.handle).count
    whole = struct.pack("=QIIQ", opened.handle, 0, 0, 0)
    kernel.answer_to(Code.READ, entry.number, whole + bytes(16))

    answer = kernel.answer_to(code, entry.number, b"")

    assert answer.error == errno.EINVAL
    assert kernel.files.get(opened.handle).count == before
    kernel.release(entry.number, opened.handle)
