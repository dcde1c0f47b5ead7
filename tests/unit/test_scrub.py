"""The scrub: resumable, bounded, finds and heals."""

from __future__ import annotations

import random

import pytest

from kvstate.errors import Damaged
from kvstated.jobs import Jobs

LARGE = random.Random(8).randbytes(300_000)


@pytest.fixture
def filled(store):
    for number in range(5):
        store.artifacts.put(f"t/w/{number}", LARGE[number:])
    store.artifacts.put("t/w/small", b"small")
    store.artifacts.move("t/w/4", "cold")
    return store


def _file_of(store, name):
    node = store.catalog.walk_path(tuple(name.split("/")))
    record = store.blobs.record(store.engine, node.blob)
    (found,) = (store.path / "tiers").glob(f"*/??/{node.blob.hex()}{record.generation:04x}")
    return found


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_whole_round_reads_everything(filled):
    scrubbed = filled.scrub()

    assert scrubbed.complete
    assert scrubbed.blobs == 6
    assert scrubbed.bytes > 4 * 299_000
    assert scrubbed.damaged == ()


def test_it_goes_on_where_it_ended(filled):
    rounds = [filled.scrub(bytes_max=200_000)]
    while not rounds[-1].complete:
        rounds.append(filled.scrub(bytes_max=200_000))

    assert len(rounds) > 3
    assert sum(each.blobs for each in rounds) == 6
    assert len({each.started_at_ns for each in rounds}) == 1


def test_damage_is_quarantined_named_and_refused(filled):
    _flip(_file_of(filled, "t/w/2"), 70_000)

    scrubbed = filled.scrub(restart=True)

    assert len(scrubbed.damaged) == 1
    assert "block 1" in scrubbed.damaged[0][1]
    assert filled.stats()["damaged"] == {"blobs": 1, "artifacts": ["t/w/2"]}
    with pytest.raises(Damaged):
        filled.artifacts.get("t/w/2")
    assert [(v.name, bool(v.problem)) for v in filled.artifacts.verify_all() if v.problem] == [
        ("t/w/2", True)
    ]
    filled.artifacts.put("u/v/again", LARGE[2:])
    assert filled.stats()["damaged"] == {"blobs": 0, "artifacts": []}
    assert filled.artifacts.get("t/w/2") == LARGE[2:]


def test_a_packed_file_is_scrubbed_to_its_last_byte(filled):
    _flip(_file_of(filled, "t/w/4"), -1)

    scrubbed = filled.scrub(restart=True)

    assert "seek table" in scrubbed.damaged[0][1]
    filled.artifacts.put("t/w/same", LARGE[4:])
    assert filled.artifacts.get("t/w/4") == LARGE[4:]
    assert filled.scrub(restart=True).damaged == ()


def test_a_flipped_record_is_found(filled):
    key = next(k for k, _ in filled.engine.scan(b"C", b"D", limit=1))
    data = filled.engine.get(key)
    filled.engine.txn(lambda tx: tx.put(key, data[:-1] + b"?"))

    damaged = filled.scrub(restart=True).damaged

    assert any("record" in what for what, _ in damaged)
    with pytest.raises(Damaged):
        filled.artifacts.get("t/w/small")
    filled.artifacts.put("t/w/small", b"small")
    filled.artifacts.put("t/w/other", b"small")
    assert filled.artifacts.get("t/w/small") == b"small"


def test_a_drill_restores_a_sample(filled, tmp_path):
    drill = filled.artifacts.drill(tmp_path / "scratch", count=3)

    assert drill.ok
    assert [each.name for each in drill.restored] == ["t/w/4"]
    assert (tmp_path / "scratch/t/w/4").read_bytes() == LARGE[4:]
    again = filled.artifacts.drill(tmp_path / "scratch", count=3)
    assert not again.ok
    assert "exists" in again.restored[0].problem.lower()


def test_the_daemon_scrubs_a_share_of_all_at_a_time(filled, caplog):
    _flip(_file_of(filled, "t/w/0"), 5)
    jobs = Jobs(filled)

    jobs.scrub()

    assert "block 0 fails its checksum" in caplog.text
    assert filled.stats()["damaged"]["artifacts"] == ["t/w/0"]
    filled.artifacts.put("t/w/again", LARGE)
