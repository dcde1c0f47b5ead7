"""The seam's facts, for every engine."""

from __future__ import annotations

import threading

import pytest

from kvstate.engine.lmdb import LmdbEngine
from kvstate.engine.memory import MemoryEngine
from kvstate.errors import Unavailable
from tests.harness import RerunEngine


def _lmdb(path):
    path.mkdir(exist_ok=True)
    return LmdbEngine(path, map_bytes=1 << 30, readers_max=64, read_only=False, create=True)


@pytest.fixture(params=["lmdb", "memory", "lmdb-rerun", "memory-rerun"])
def engine(request, tmp_path):
    kind, _, rerun = request.param.partition("-")
    made = _lmdb(tmp_path / "records") if kind == "lmdb" else MemoryEngine()
    yield RerunEngine(made) if rerun else made
    made.close()


def _put(engine, **pairs):
    def run(tx):
        for key, value in pairs.items():
            tx.put(key.encode(), value)

    engine.txn(run)


def test_what_was_put_is_got(engine):
    _put(engine, a=b"1")

    assert engine.get(b"a") == b"1"
    assert engine.get(b"b") is None


def test_a_transaction_reads_its_own_writes(engine):
    def run(tx):
        tx.put(b"a", b"1")
        tx.put(b"b", b"2")
        tx.delete(b"a")
        return tx.get(b"a"), tx.get(b"b"), list(tx.scan(b"a", b"z"))

    assert engine.txn(run) == (None, b"2", [(b"b", b"2")])


def test_an_exception_leaves_nothing_behind(engine):
    _put(engine, a=b"1")

    def run(tx):
        tx.put(b"a", b"2")
        tx.put(b"b", b"2")
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        engine.txn(run)

    assert engine.scan(b"", b"z", limit=9) == [(b"a", b"1")]


def test_scans_are_half_open_and_ordered_both_ways(engine):
    _put(engine, a=b"1", b=b"2", c=b"3", d=b"4")

    assert [k for k, _ in engine.scan(b"b", b"d", limit=9)] == [b"b", b"c"]
    assert [k for k, _ in engine.scan(b"b", b"d", limit=9, reverse=True)] == [b"c", b"b"]
    assert next(k for k, _ in engine.scan(b"a", b"zz", limit=9, reverse=True)) == b"d"
    assert [k for k, _ in engine.scan(b"a", b"d", limit=2)] == [b"a", b"b"]
    assert engine.scan(b"d", b"a", limit=9) == []
    assert engine.read(lambda tx: [k for k, _ in tx.scan(b"a", b"c", reverse=True)]) == [b"b", b"a"]


def test_delete_says_whether_it_was_there(engine):
    _put(engine, a=b"1")

    assert engine.txn(lambda tx: (tx.delete(b"a"), tx.delete(b"a"))) == (True, False)
    assert engine.get(b"a") is None


def test_a_read_sees_one_state_while_others_write(engine):
    _put(engine, a=b"1", b=b"1")

    def run(tx):
        first = tx.get(b"a")
        if not isinstance(getattr(engine, "_engine", engine), MemoryEngine):
            writer = threading.Thread(target=_put, args=(engine,), kwargs={"a": b"2", "b": b"2"})
            writer.start()
            writer.join()
        return first, tx.get(b"b")

    assert engine.read(run) == (b"1", b"1")


def test_the_revision_grows_with_every_commit_and_wakes_who_waits(engine):
    before = engine.revision()
    seen = []
    waiter = threading.Thread(target=lambda: seen.append(engine.watch(before, 20)))
    waiter.start()

    _put(engine, a=b"1")
    waiter.join(20)

    assert engine.revision() > before
    assert seen[0] > before


def test_who_has_seen_the_revision_reads_at_least_what_it_counts(engine):
    _put(engine, n=b"0")
    first = engine.revision()
    behind = []
    done = threading.Event()

    def look():
        while not done.is_set():
            counted = engine.revision() - first
            read = int(engine.get(b"n"))
            if read < counted:
                behind.append((counted, read))

    looker = threading.Thread(target=look)
    looker.start()
    for n in range(1, 201):
        _put(engine, n=str(n).encode())
    done.set()
    looker.join(20)

    assert behind == []
    assert engine.revision() - first == 200


def test_waiting_ends_when_the_time_is_up(engine):
    revision = engine.revision()

    assert engine.watch(revision, 0.01) == revision


def test_many_threads_lose_no_increment(engine):
    def increment():
        for _ in range(20):

            def run(tx):
                tx.put(b"n", str(int(tx.get(b"n") or b"0") + 1).encode())

            engine.txn(run)

    threads = [threading.Thread(target=increment) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert engine.get(b"n") == b"160"


def test_one_writers_error_spoils_no_other_writer(engine):
    def work(number):
        def run(tx):
            tx.put(b"k%03d" % number, b"")
            if number % 3 == 0:
                raise ValueError(number)

        try:
            engine.txn(run)
        except ValueError as error:
            failed.append(error.args[0])

    failed = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(failed) == list(range(0, 60, 3))
    assert len(engine.scan(b"k", b"l", limit=99)) == 40


def test_a_closed_engine_says_so(engine):
    engine.close()

    with pytest.raises(Unavailable, match="closed"):
        engine.get(b"a")


def test_a_transaction_tells_the_next_what_it_knows(engine):
    def remember(tx):
        tx.put(b"a", b"1")
        tx.memo["a"] = b"1"

    engine.txn(remember)

    known = []
    engine.txn(lambda tx: known.append(tx.memo.get("a", tx.get(b"a"))))
    assert known[-1] == b"1"


def test_what_an_aborted_transaction_knew_is_forgotten(engine):
    def fail(tx):
        tx.put(b"a", b"2")
        tx.memo["a"] = b"2"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.txn(fail)

    assert engine.txn(lambda tx: tx.memo.get("a")) is None
