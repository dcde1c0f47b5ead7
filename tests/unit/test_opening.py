"""Opening a store, and the stores that cannot be opened."""

from __future__ import annotations

import multiprocessing
import os
import struct

import lmdb
import pytest

from kvstate.codec import encode
from kvstate.errors import Denied, Full, Incompatible, NotFound, Unavailable
from kvstate.keyspace import meta_key
from kvstate.records import seal_envelope
from kvstate.settings import StoreSettings
from kvstate.store import open_store


def test_a_new_store_is_private(tmp_path, open_checked):
    open_checked(tmp_path / "a" / "store")

    for found in [tmp_path / "a" / "store", *(tmp_path / "a" / "store").rglob("*")]:
        assert found.stat().st_mode & 0o077 == 0, found


def test_a_store_that_is_not_there_is_not_made_when_that_is_not_wanted(tmp_path):
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(NotFound):
            open_store(tmp_path / "none", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_was_stored_is_there_after_reopening(tmp_path, open_checked):
    with open_checked(tmp_path / "store") as store:
        store.namespace("ns")["k"] = 1
        store.artifacts.put("t/w/a", b"x" * 100_000)

    again = open_checked(tmp_path / "store", create=False)

    assert again.namespace("ns")["k"] == 1
    assert again.artifacts.get("t/w/a") == b"x" * 100_000


def test_one_process_may_open_a_store_twice(tmp_path, open_checked):
    one = open_checked(tmp_path / "store")
    other = open_checked(tmp_path / "store")
    one.namespace("ns")["k"] = 1
    one.close()

    assert other.namespace("ns")["k"] == 1
    with pytest.raises(Unavailable, match="closed"):
        one.namespace("ns").get("k")


def test_a_read_only_store_reads_and_refuses_to_write(tmp_path, open_checked):
    with open_checked(tmp_path / "store") as store:
        store.namespace("ns")["k"] = 1

    store = open_checked(tmp_path / "store", read_only=True)

    assert store.namespace("ns")["k"] == 1
    with pytest.raises(Denied):
        store.namespace("ns").set("k", 2)


def test_a_store_of_another_format_is_refused_and_untouched(tmp_path):
    store = open_store(tmp_path / "store")
    key = meta_key("format")
    record = seal_envelope(key, encode({"format": 7}), revision=1, created_ns=1, updated_ns=1)
    store.engine.txn(lambda tx: tx.put(key, record))
    store.close()
    before = (tmp_path / "store/records/data.mdb").read_bytes()

    with pytest.raises(Incompatible, match="format 7"):
        open_store(tmp_path / "store")

    assert (tmp_path / "store/records/data.mdb").read_bytes() == before


def _corrupt_meta(path, offset, value):
    with (path / "records/data.mdb").open("r+b") as file:
        for page in (0, 4096):
            file.seek(page + 16 + offset)
            file.write(value)


def test_records_of_another_lmdb_version_are_refused(tmp_path):
    open_store(tmp_path / "store").close()
    _corrupt_meta(tmp_path / "store", 4, struct.pack("=I", 999))

    with pytest.raises(Incompatible, match="version"):
        open_store(tmp_path / "store")


def test_records_of_another_machine_are_refused(tmp_path):
    open_store(tmp_path / "store").close()
    _corrupt_meta(tmp_path / "store", 0, struct.pack(">I", 0xBEEFC0DE))

    with pytest.raises(Incompatible, match="word size or byte order"):
        open_store(tmp_path / "store")


def test_a_file_where_the_store_should_be_is_refused(tmp_path):
    (tmp_path / "store").write_text("not a folder")

    with pytest.raises((Unavailable, NotFound), match="store"):
        open_store(tmp_path / "store")


def test_a_store_whose_files_may_not_be_written_says_so(tmp_path):
    open_store(tmp_path / "store").close()
    (tmp_path / "store/records").chmod(0o500)
    (tmp_path / "store/records/data.mdb").chmod(0o400)
    outcome = multiprocessing.get_context("spawn").Queue()
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    child = multiprocessing.get_context("spawn").Process(
        target=_open_as_nobody, args=(tmp_path / "store", outcome)
    )
    child.start()

    assert outcome.get(timeout=30) == "Denied"
    child.join()


def _open_as_nobody(path, outcome):
    if os.getuid() == 0:
        for found in [path, *path.rglob("*")]:
            os.chown(found, 65534, 65534)
        os.setgid(65534)
        os.setuid(65534)
    try:
        open_store(path)
        outcome.put("opened")
    except Exception as error:  # noqa: BLE001  (the parent wants its name)
        outcome.put(type(error).__name__)


def test_a_small_map_is_full_and_usable_again(tmp_path, open_checked):
    store = open_checked(tmp_path / "store", settings=StoreSettings(map_bytes=1 << 20))
    ns = store.namespace("ns")

    def fill():
        for number in range(1000):
            ns.set(f"k{number}", b"x" * 10_000)

    with pytest.raises(Full, match="map_bytes"):
        fill()
    count = len(ns)
    assert 5 < count < 1000
    assert store.check().clean
    with pytest.raises(Full):
        ns.set("another", b"x" * 60_000)
    assert len(ns) == count
    assert ns["k0"] == b"x" * 10_000


def test_a_store_opened_before_a_fork_says_so_in_the_child(tmp_path, open_checked):
    store = open_checked(tmp_path / "store")
    store.namespace("ns")["k"] = 1
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            store.namespace("ns").get("k")
        except Unavailable:
            with open_store(tmp_path / "store") as own:
                status = 0 if own.namespace("ns")["k"] == 1 else 2
        finally:
            os._exit(status)

    assert os.waitpid(pid, 0)[1] == 0
    assert store.namespace("ns")["k"] == 1


def test_a_dead_readers_slot_is_cleared_on_opening(tmp_path, open_checked):
    open_checked(tmp_path / "store")
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_read_and_die, args=(tmp_path / "store",))
    child.start()
    child.join()

    store = open_checked(tmp_path / "store")

    assert child.exitcode == -9
    assert str(child.pid) not in store.engine._env.readers()


def _read_and_die(path):
    env = lmdb.open(str(path / "records"), max_readers=64, map_size=1 << 30)
    txn = env.begin()
    txn.get(b"M")
    os.kill(os.getpid(), 9)


def test_what_lmdb_cannot_do_is_said_in_our_words(tmp_path, open_checked):
    store = open_checked(tmp_path / "store")

    with pytest.raises(Unavailable, match="already running"):
        store.engine.txn(lambda _tx: store.namespace("ns").set("k", 1))
