"""Flipped bits: found by the next read and by the check; never a silent wrong value."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from kvstate.errors import Damaged, StateError
from kvstate.store import open_store

CONTENT = random.Random(3).randbytes(300_000)


def _blob_files(path):
    return [f for f in path.glob("tiers/*/??/*") if f.is_file()]


def _flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_of_a_blob_file_is_never_served(tmp_path, seed):
    path = tmp_path / "store"
    with open_store(path) as store:
        store.artifacts.put("t/w/a", CONTENT)
    (file,) = _blob_files(path)
    bit = random.Random(seed).randrange(len(CONTENT) * 8)
    _flip(file, bit)

    with open_store(path) as store:
        with pytest.raises(Damaged, match="checksum"):
            store.artifacts.get("t/w/a")
        with pytest.raises(Damaged):
            store.artifacts.verify("t/w/a")
        assert [p.kind for p in store.check(verify=True).problems] == ["damaged"]


def test_a_blob_file_that_is_cut_or_gone_is_damaged(tmp_path):
    path = tmp_path / "store"
    with open_store(path) as store:
        store.artifacts.put("t/w/a", CONTENT)
        (file,) = _blob_files(path)
        file.write_bytes(CONTENT[:-1])
        assert [p.kind for p in store.check().problems] == ["file"]
        with pytest.raises(Damaged):
            store.artifacts.get("t/w/a")

        file.unlink()
        with pytest.raises(Damaged):
            store.artifacts.get("t/w/a")
        assert [p.kind for p in store.check().problems] == ["damaged"]


def test_a_link_planted_for_a_blob_file_is_not_followed(tmp_path):
    path, secret = tmp_path / "store", tmp_path / "secret"
    secret.write_bytes(CONTENT)
    with open_store(path) as store:
        store.artifacts.put("t/w/a", CONTENT)
        (file,) = _blob_files(path)
        file.unlink()
        file.symlink_to(secret)

        with pytest.raises(Damaged, match="link"):
            store.artifacts.get("t/w/a")
        store.artifacts.delete("t/w/a")
    assert secret.read_bytes() == CONTENT


READ_ALL = """
import sys
from kvstate.errors import StateError
from kvstate.store import open_store
try:
    store = open_store(sys.argv[1], create=False)
    wrong = [k for k in map(str, range(200)) if store.namespace("ns").get(k) not in (k * 50, None)]
    artifacts = store.artifacts
    wrong += [a.name for a in artifacts.list() if artifacts.get(a.name) != a.name.encode() * 100]
    print("wrong", wrong, "clean", store.check(verify=True).clean)
except StateError as error:
    print("refused", type(error).__name__)
"""


def test_no_flipped_bit_of_the_record_file_gives_a_wrong_value(tmp_path):
    """A flipped bit may also end LMDB itself; each try therefore has a process of its own."""
    path = tmp_path / "store"
    with open_store(path) as store:
        store.namespace("ns").set_many({str(n): str(n) * 50 for n in range(200)})
        for number in range(20):
            store.artifacts.put(f"t/w/{number}", f"t/w/{number}".encode() * 100)
    data = path / "records/data.mdb"
    original = data.read_bytes()
    rng = random.Random(4)
    outcomes = []
    for _ in range(40):
        data.write_bytes(original)
        _flip(data, rng.randrange(8192 * 8, len(original) * 8))
        done = subprocess.run(  # noqa: PLW1510  (it may die)
            [sys.executable, "-c", READ_ALL, path], capture_output=True, text=True, timeout=60
        )
        outcomes.append((done.returncode, done.stdout.strip()))
    data.write_bytes(original)

    assert [
        o for o in outcomes if o[0] == 0 and "wrong []" not in o[1] and "refused" not in o[1]
    ] == []
    found = sum("clean False" in text or "refused" in text or code != 0 for code, text in outcomes)
    assert found > 0


def test_what_is_damaged_says_so_in_a_mapping_too(tmp_path):
    with open_store(tmp_path / "store") as store:
        ns = store.namespace("ns")
        ns["a"] = 1
        key = next(k for k, _ in store.engine.scan(b"S", b"T", limit=1))
        record = bytearray(store.engine.get(key))
        record[-1] ^= 1
        store.engine.txn(lambda tx: tx.put(key, bytes(record)))

        for call in (lambda: ns["a"], lambda: ns.get("a"), lambda: list(ns), lambda: ns.entry("a")):
            with pytest.raises(Damaged):
                call()
        with pytest.raises(StateError):
            "a" in ns  # noqa: B015
