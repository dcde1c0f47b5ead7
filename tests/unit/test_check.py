"""Every invariant of the check, broken by hand, is named."""

from __future__ import annotations

import random
import threading

import pytest

from kvstate.codec import seal
from kvstate.keyspace import (
    digest_key,
    due_key,
    expiry_key,
    held_key,
    identity_key,
    recent_key,
)
from kvstate.records import open_envelope, seal_envelope
from kvstate.store import open_store
from kvstate.tally import totals_record

LARGE = random.Random(5).randbytes(150_000)


@pytest.fixture
def sound(tmp_path):
    """A store with one of everything, closed without the check that every other test has."""
    with open_store(tmp_path / "store") as store:
        store.namespace("ns").set("k", 1, ttl=60)
        store.namespace("ns").set("big", "x" * 100_000)
        store.configure("past", history=5, index=["stage"])
        for stage in ("a", "b", "c", "d"):
            store.namespace("past").set("k", {"stage": stage})
        store.artifacts.put("t/w/small", b"small")
        store.artifacts.put("t/w/large", LARGE)
        store.artifacts.put("u/w/large", LARGE)
        store.artifacts.put("u/w/cold", LARGE[:-1])
        store.artifacts.move("u/w/large", "cold")
        store.artifacts.move("u/w/cold", "cold")
        assert store.check(verify=True).clean
        yield store


def _first(store, prefix):
    return next(k for k, _ in store.engine.scan(prefix, prefix + b"\xff" * 40, limit=1))


def _delete(store, key):
    assert store.engine.txn(lambda tx: tx.delete(key))


def _put(store, key, value):
    store.engine.txn(lambda tx: tx.put(key, value))


def _rewrite(store, key, payload):
    envelope = open_envelope(key, store.engine.get(key))
    record = seal_envelope(
        key,
        payload(envelope.payload),
        revision=envelope.revision,
        created_ns=envelope.created_ns,
        updated_ns=envelope.updated_ns,
    )
    _put(store, key, record)


def _blob_file(store):
    return next(f for f in store.path.glob("tiers/hot/??/*"))


BREAKAGES = {
    "a flipped record": (
        lambda s: _put(s, _first(s, b"T"), s.engine.get(_first(s, b"T"))[:-1] + b"\0"),
        "record",
    ),
    "a key of no kind": (lambda s: _put(s, b"~nonsense", b""), "key"),
    "a lost expiry": (lambda s: _delete(s, _first(s, b"E")), "expiry"),
    "an expiry of nothing": (lambda s: _put(s, expiry_key(5, 5, b"x"), b""), "expiry"),
    "a lost namespace": (lambda s: _delete(s, b"Nns"), "namespace"),
    "a lost identity": (lambda s: _delete(s, _first(s, b"I")), "identity"),
    "an identity of nothing": (
        lambda s: _put(s, identity_key(9), seal(identity_key(9), bytes(7) + b"\1x")),
        "identity",
    ),
    "a lost due entry": (lambda s: _delete(s, _first(s, b"D")), "due"),
    "a due entry of nothing": (lambda s: _put(s, due_key(1, 9), b""), "due"),
    "wrong usage": (lambda s: _put(s, *totals_record(1, [9] * 8)), "usage"),
    "a lost usage": (lambda s: _delete(s, _first(s, b"U")), "usage"),
    "a lost entry in the order of time": (lambda s: _delete(s, _first(s, b"R")), "recent"),
    "a recent entry of nothing": (lambda s: _put(s, recent_key(7, 8, 9), b""), "recent"),
    "a hold of nothing": (lambda s: _put(s, held_key(7, 9), b""), "held"),
    "a lost blob": (lambda s: _delete(s, _first(s, b"B")), "reference"),
    "a lost content": (lambda s: _delete(s, _first(s, b"C")), "content"),
    "lost checksums": (lambda s: _delete(s, _first(s, b"Q")), "checksums"),
    "a lost digest": (lambda s: _delete(s, _first(s, b"H")), "digest"),
    "a digest of nothing": (lambda s: _put(s, digest_key(b"d" * 16, b"b" * 16), b""), "digest"),
    "a note of a blob that is in place": (
        lambda s: _put(s, b"P" + _first(s, b"F")[1:17], b""),
        "misplaced",
    ),
    "lost frames": (lambda s: _delete(s, _first(s, b"F")), "checksums"),
    "a lost file": (lambda s: _blob_file(s).unlink(), "file"),
    "a cut file": (lambda s: _blob_file(s).write_bytes(b"short"), "file"),
    "an orphan": (
        lambda s: _blob_file(s).with_name(_blob_file(s).name[:-4] + "0009").write_bytes(b"x"),
        "orphan",
    ),
    "a lost count": (lambda s: _delete(s, _first(s, b"K")), "count"),
    "a lost version": (lambda s: _delete(s, s.engine.scan(b"V", b"W", limit=2)[1][0]), "version"),
    "versions that never get too old": (lambda s: _delete(s, _first(s, b"W")), "version"),
    "a lost index entry": (lambda s: _delete(s, _first(s, b"X")), "index"),
    "an index entry of nothing": (lambda s: _put(s, _first(s, b"X") + b"y", b""), "index"),
    "a journal entry altered and sealed again": (
        lambda s: _rewrite(s, _first(s, b"J"), lambda payload: payload[:-1] + b"x"),
        "journal",
    ),
    "a gap in the journal": (
        lambda s: _delete(s, s.engine.scan(b"J", b"K", limit=3)[2][0]),
        "journal",
    ),
}


BEYOND_REPAIR = {
    "a flipped record",
    "a key of no kind",
    "a lost blob",
    "a lost content",
    "lost checksums",
    "lost frames",
    "a lost file",
    "a cut file",
    "a lost version",
    "a gap in the journal",
    "a journal entry altered and sealed again",
}


@pytest.mark.parametrize("what", sorted(BREAKAGES.keys() - BEYOND_REPAIR))
def test_a_repair_mends(sound, what):
    breakage, kind = BREAKAGES[what]
    breakage(sound)

    report = sound.check(repair=True)

    assert report.clean
    assert kind in {problem.kind for problem in report.repaired}
    assert sound.check(verify=True).clean
    assert {event.kind for event in sound.journal()} >= {"repair"} or kind == "orphan"


@pytest.mark.parametrize("what", sorted(BEYOND_REPAIR))
def test_a_repair_leaves_named_what_it_cannot_mend(sound, what):
    breakage, _ = BREAKAGES[what]
    breakage(sound)

    report = sound.check(repair=True)

    assert not report.clean
    assert sound.check(repair=True).problems == report.problems
    assert sound.namespace("ns")["k"] == 1


@pytest.mark.parametrize("what", BREAKAGES)
def test_the_check_names(sound, what):
    breakage, kind = BREAKAGES[what]

    breakage(sound)

    problems = sound.check(verify=True).problems
    assert kind in {problem.kind for problem in problems}
    assert all(problem.where and problem.why for problem in problems)


def test_wrong_folder_counts_are_named(sound):
    folder = sound.catalog.lookup(1, "t")
    sound.catalog.edit(
        folder.id, lambda node, _change: node._replace(shown=(7, 0, 0)), "on purpose"
    )

    assert "folder" in {problem.kind for problem in sound.check().problems}


def test_a_check_beside_a_writer_invents_no_problem(tmp_path):
    with open_store(tmp_path / "store") as store:
        stop = threading.Event()

        def write():
            number = 0
            while not stop.is_set():
                number += 1
                store.artifacts.put(f"t/w/{number % 7}", LARGE + bytes([number % 251]))
                store.artifacts.move(f"t/w/{number % 7}", ("hot", "warm", "cold")[number % 3])
                store.namespace("ns").set("k", number)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            problems = [store.check(verify=True).problems for _ in range(25)]
        finally:
            stop.set()
            writer.join()

        assert [p for p in problems if p] == []
        assert store.check(verify=True).clean
