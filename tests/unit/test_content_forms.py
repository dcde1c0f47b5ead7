"""The forms that content takes on the disk: readable by hand, with holes, in ranges, by many."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import time

import pytest

from kvstate.settings import StoreSettings

MIB = 1 << 20
LARGE = random.Random(9).randbytes(3 * MIB + 12_345)


def _file_of(store, name):
    node = store.catalog.walk_path(tuple(name.split("/")))
    record = store.blobs.record(store.engine, node.blob)
    (found,) = (store.path / "tiers").glob(f"*/??/{node.blob.hex()}{record.generation:04x}")
    return found


def _sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"something")
    return path


def test_a_plain_file_is_the_bytes(store):
    store.artifacts.put("t/w/a", LARGE)

    assert _file_of(store, "t/w/a").read_bytes() == LARGE


@pytest.mark.skipif(not shutil.which("zstd"), reason="needs the command zstd")
def test_a_cold_file_is_restored_by_hand(store):
    text = b"the same line again and again\n" * 100_000
    store.artifacts.put("t/w/a", text)
    store.artifacts.move("t/w/a", "cold")
    path = _file_of(store, "t/w/a")

    with path.open("rb") as packed:
        command = ["zstd", "-d", "-c"]
        restored = subprocess.run(command, stdin=packed, capture_output=True, check=True).stdout

    assert restored == text
    assert path.stat().st_size < len(text) / 100


def test_it_comes_back_as_it_was(store):
    store.artifacts.put("t/w/a", LARGE)
    for tier in ("cold", "warm", "cold", "hot"):
        store.artifacts.move("t/w/a", tier)
        assert store.artifacts.get("t/w/a") == LARGE


def test_what_is_put_into_cold_is_packed_by_the_next_run(store):
    text = b"words " * 100_000
    store.artifacts.put("t/w/a", text, tier="cold")

    store.lifecycle.run()

    assert _file_of(store, "t/w/a").stat().st_size < len(text) / 10
    assert store.artifacts.get("t/w/a") == text


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_ranges_at_every_edge(store, tier):
    store.artifacts.put("t/w/a", LARGE)
    store.artifacts.move("t/w/a", tier)
    edges = [0, 1, 65_535, 65_536, 65_537, MIB - 1, MIB, MIB + 1, 2 * MIB, len(LARGE) - 1]

    with store.artifacts.open("t/w/a") as reader:
        for start in edges:
            for size in (1, 65_536, 70_000, MIB + 3):
                reader.seek(start)
                assert reader.read(size) == LARGE[start : start + size]


def test_holes_stay_holes(store, tmp_path):
    source = _sparse(tmp_path / "sparse", 64 * MIB)
    store.artifacts.put("t/w/a", source)
    expected = source.read_bytes()

    for tier in ("hot", "warm", "cold", "hot"):
        store.artifacts.move("t/w/a", tier)
        assert _file_of(store, "t/w/a").stat().st_blocks * 512 <= MIB
    assert store.artifacts.get("t/w/a") == expected
    assert store.artifacts.verify("t/w/a").size == 64 * MIB


def test_a_file_that_is_one_hole(store, tmp_path):
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(10 * MIB)

    store.artifacts.put("t/w/a", tmp_path / "hole")

    assert store.artifacts.get("t/w/a") == bytes(10 * MIB)


def test_empty_content_in_every_tier(store):
    for tier in ("hot", "warm", "cold"):
        store.artifacts.put(f"t/w/{tier}", b"", tier=tier)
    store.artifacts.move("t/w/hot", "cold")
    store.artifacts.restore("t/w/cold")

    assert {store.artifacts.get(f"t/w/{tier}") for tier in ("hot", "warm", "cold")} == {b""}


def test_equal_content_of_all_tenants_is_stored_once(store, tmp_path):
    (tmp_path / "file").write_bytes(LARGE)
    store.artifacts.put("a/w/x", LARGE)
    store.artifacts.put("b/w/y", tmp_path / "file")
    store.artifacts.put_many({"c/w/z": LARGE, "c/w/small": b"s", "d/w/small": b"s"})

    assert store.check().counts["blobs"] == 2
    store.artifacts.move("a/w/x", "cold")
    assert _file_of(store, "a/w/x").read_bytes() == LARGE  # others want it hot
    store.artifacts.delete("b/w/y")
    store.artifacts.delete("c/w/z")
    store.lifecycle.run()
    assert "cold" in str(_file_of(store, "a/w/x"))
    assert store.artifacts.get("a/w/x") == LARGE


def test_readers_keep_their_bytes_through_moves_overwrites_and_deletes(store):
    store.artifacts.put("t/w/a", LARGE)
    store.artifacts.move("t/w/a", "cold")
    readers = []
    for change in (
        lambda: store.artifacts.move("t/w/a", "hot"),
        lambda: store.artifacts.move("t/w/a", "cold"),
        lambda: store.artifacts.put("t/w/a", b"new"),
        lambda: store.artifacts.delete("t/w/a"),
    ):
        readers.append((store.artifacts.open("t/w/a"), store.artifacts.get("t/w/a")))
        change()

    for reader, expected in readers:
        with reader:
            assert reader.read() == expected


def test_many_read_at_once(store):
    store.artifacts.put("t/w/a", LARGE)
    store.artifacts.move("t/w/a", "cold")
    wrong = []

    def read(seed):
        chance = random.Random(seed)
        with store.artifacts.open("t/w/a") as reader:
            for _ in range(30):
                start = chance.randrange(len(LARGE))
                reader.seek(start)
                if reader.read(5000) != LARGE[start : start + 5000]:
                    wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_a_run_keeps_to_its_rate(tmp_path, clock, open_checked):
    settings = StoreSettings(move_bytes_per_second=1_000_000)
    store = open_checked(tmp_path / "store", clock=clock, settings=settings)
    store.artifacts.put("t/w/a", LARGE[:300_000])
    clock.advance(days=8)

    began = time.monotonic()
    assert store.lifecycle.run().promoted_to_warm == 1

    # Copied and read again are 600,000 bytes; the last step is not waited for.
    assert time.monotonic() - began > 0.2
