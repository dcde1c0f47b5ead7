"""The journal's hash chain: whatever somebody with access to the records does, it shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstate import chain
from kvstate.chain import BODY, NO_LINK, TRIMMED_KEY, link_record, open_link, verify
from kvstate.codec import SEAL_BYTES, encode, seal
from kvstate.errors import InvalidValue
from kvstate.keyspace import journal_key, parse_journal
from kvstate.records import open_envelope, seal_envelope
from kvstate.settings import StoreSettings
from kvstate.store import open_store
from tests.harness import ManualClock

SHORT = StoreSettings(journal_bytes_max=1 << 16)


def filled(path, *, trimmed, engine="memory"):
    """Give a store whose journal has a revision of three records, and was trimmed or not."""
    store = open_store(path, engine=engine, settings=SHORT, clock=ManualClock())
    namespace = store.namespace("ns")
    if trimmed:
        for number in range(400):
            namespace.set("k", f"{number}" * 100)
    namespace.set_many({f"k{number}": number for number in range(300)})
    store.artifacts.put("t/w/a", b"content")
    for number in range(5):
        namespace.set("k", number)
    return store


@pytest.fixture(params=["whole", "trimmed"])
def store(request, tmp_path):
    with filled(tmp_path, trimmed=request.param == "trimmed") as opened:
        yield opened


@pytest.fixture
def trimmed(tmp_path):
    with filled(tmp_path, trimmed=True) as opened:
        yield opened


@pytest.fixture(scope="module", params=["whole", "trimmed"])
def kept(request, tmp_path_factory):
    """One for many examples; each puts back what it altered."""
    with filled(tmp_path_factory.mktemp("kept"), trimmed=request.param == "trimmed") as opened:
        yield opened


def records(store):
    return store.engine.scan(b"J", b"K", limit=10**6)


def put(store, key, data):
    store.engine.txn(lambda tx: tx.put(key, data))


def delete(store, key):
    assert store.engine.txn(lambda tx: tx.delete(key))


def link_of(key, data):
    return open_link(open_envelope(key, data).payload)[1]


def forge(store, key, data, before):
    """Let a record speak of another key, with a link that fits; give the link."""
    envelope = open_envelope(key, data)
    start, body = open_link(envelope.payload)[0], envelope.payload[BODY:]
    assert encode("k") in body
    body = body.replace(encode("k"), encode("x"))
    record, link = link_record(before, key, envelope.updated_ns, envelope.revision, start, body)
    put(store, key, record)
    return link


def found(store):
    report = store.verify_journal()
    return report.altered, report.kind


def test_a_journal_that_nobody_touched_is_sound(store):
    every = records(store)

    report = store.verify_journal()

    assert report.sound
    assert report.records == len(every)
    assert report.first == parse_journal(every[0][0])[0]
    assert (report.first == 1) == (store.engine.get(TRIMMED_KEY) is None)
    assert report.last == store.revision()
    assert report.tip == link_of(*every[-1]).hex()
    assert (report.altered, report.kind, report.why, report.noted) == (None, "", "", None)
    assert store.check().clean


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_one_altered_byte_is_found_at_exactly_that_revision(kept, data):
    key, record = data.draw(st.sampled_from(records(kept)), "record")
    body = bytearray(record[SEAL_BYTES:])
    body[data.draw(st.integers(0, len(body) - 1), "byte")] ^= data.draw(st.integers(1, 255), "by")

    put(kept, key, seal(key, bytes(body)))
    try:
        said, _ = found(kept)
    finally:
        put(kept, key, record)

    assert said == parse_journal(key)[0]
    assert kept.verify_journal().sound


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_removed_record_is_a_gap_at_its_revision(kept, data):
    key, record = data.draw(st.sampled_from(records(kept)[:-1]), "record")
    revision, chunk = parse_journal(key)

    delete(kept, key)
    try:
        said = found(kept)
    finally:
        put(kept, key, record)

    if chunk and kept.engine.get(journal_key(revision, chunk + 1)) is None:
        # How many records a revision has is known to the link of the next one alone.
        assert said == (revision + 1, "link")
    else:
        assert said == (revision, "gap")


def test_two_swapped_records_are_found_at_the_first(store):
    (low, low_data), (high, high_data) = records(store)[-3:-1]

    put(store, low, seal(low, high_data[SEAL_BYTES:]))
    put(store, high, seal(high, low_data[SEAL_BYTES:]))

    assert found(store) == (parse_journal(low)[0], "link")


def test_the_check_names_a_sealed_alteration_at_its_revision(store):
    key, data = records(store)[-2]

    put(store, key, seal(key, data[SEAL_BYTES:-2] + b"x" + data[-1:]))

    problems = [p for p in store.check().problems if p.kind == "journal"]
    assert [p.where for p in problems] == [f"revision {parse_journal(key)[0]}"]
    assert "link" in problems[0].why


def test_a_record_with_a_flipped_bit_is_damaged(store):
    key, data = records(store)[2]

    put(store, key, data[:-1] + bytes([data[-1] ^ 1]))

    assert found(store) == (parse_journal(key)[0], "damaged")


def test_a_record_too_short_for_a_link_is_damaged(store):
    key, _ = records(store)[2]

    put(store, key, seal_envelope(key, b"short", revision=3, created_ns=1, updated_ns=1))

    assert found(store) == (parse_journal(key)[0], "damaged")


def test_a_planted_record_is_found(store):
    key, data = records(store)[2]

    put(store, key + b"x", seal(key + b"x", data[SEAL_BYTES:]))

    assert found(store) == (parse_journal(key)[0], "damaged")


def test_an_entry_altered_together_with_its_link_is_found_at_the_next(store):
    before, (key, data) = records(store)[-5:-3]

    forge(store, key, data, link_of(*before))

    assert found(store) == (parse_journal(key)[0] + 1, "link")


def test_only_a_noted_tip_tells_that_the_rest_of_the_chain_was_rewritten(store):
    noted = store.verify_journal().tip
    before, *rest = records(store)[-4:]

    link = link_of(*before)
    for key, data in rest:
        link = forge(store, key, data, link)

    assert store.verify_journal().sound
    assert store.check().clean
    report = store.verify_journal(noted)
    assert (report.sound, report.noted, report.altered) == (False, False, None)


def test_only_a_noted_tip_tells_that_the_newest_records_were_cut_off(store):
    noted = store.verify_journal().tip

    delete(store, records(store)[-1][0])

    assert store.verify_journal().sound
    assert not store.verify_journal(noted).sound


def test_a_noted_tip_stays_in_the_chain_until_it_is_trimmed(store):
    noted = store.verify_journal().tip
    namespace = store.namespace("ns")
    namespace.set("k", "later")
    assert store.verify_journal(noted.upper()).noted

    while store.verify_journal().first < store.revision() - 100 or store.revision() < 600:
        namespace.set("k", "x" * 1000)

    assert store.verify_journal().sound
    assert store.verify_journal(noted).noted is False


def test_the_last_record_that_was_trimmed_can_still_be_noted(trimmed):
    trimmed.namespace("ns").set("k", "more")
    every = records(trimmed)
    last = link_of(*every[0])
    _, _, before = chain.decode(open_envelope(TRIMMED_KEY, trimmed.engine.get(TRIMMED_KEY)).payload)

    assert trimmed.verify_journal(before.hex()).sound
    assert trimmed.verify_journal(last.hex()).sound
    assert not trimmed.verify_journal(NO_LINK.hex()).sound


@pytest.mark.parametrize("text", ["", "xyz", "ab" * 31, "ab" * 33, 7])
def test_what_is_no_link_is_not_looked_for(store, text):
    with pytest.raises(InvalidValue, match="expect"):
        store.verify_journal(text)


def test_the_front_of_a_trimmed_journal_cannot_be_removed(trimmed):
    key, _ = records(trimmed)[0]

    delete(trimmed, key)

    assert found(trimmed) == (parse_journal(key)[0], "gap")


def test_a_lost_note_of_what_was_trimmed_is_a_gap(trimmed):
    delete(trimmed, TRIMMED_KEY)

    assert found(trimmed) == (1, "gap")
    assert "journal" in {problem.kind for problem in trimmed.check().problems}


@pytest.mark.parametrize("payload", [b"", b"\xff", encode([1, 2]), encode(["1", 2, "3"])])
def test_a_note_of_what_was_trimmed_that_makes_no_sense_is_damage(trimmed, payload):
    record = seal_envelope(TRIMMED_KEY, payload, revision=1, created_ns=1, updated_ns=1)

    put(trimmed, TRIMMED_KEY, record)

    report = trimmed.verify_journal()
    assert (report.altered, report.kind) == (report.first, "damaged")


def test_a_record_that_was_trimmed_and_is_there_again_is_found(trimmed):
    key, data = records(trimmed)[0]
    revision = parse_journal(key)[0]
    note = encode([revision, 0, link_of(key, data)])

    put(
        trimmed,
        TRIMMED_KEY,
        seal_envelope(TRIMMED_KEY, note, revision=1, created_ns=1, updated_ns=1),
    )

    assert found(trimmed) == (revision, "link")


def test_the_chain_goes_on_when_the_store_is_opened_again(tmp_path):
    for number in range(3):
        with filled(tmp_path, trimmed=number == 1, engine="lmdb") as store:
            tip = store.verify_journal().tip

    with open_store(tmp_path) as store:
        store.namespace("ns").set("k", "again")
        assert store.verify_journal(tip).sound
        assert store.check().clean


class Overtaken:
    """An engine whose journal is trimmed between one page and the next."""

    def __init__(self, store):
        self._store = store
        self.pages = 0

    def read(self, function):
        self.pages += 1
        more = self._store.engine.read(function)
        if self.pages == 1:
            for _ in range(128):
                self._store.namespace("ns").set("k", "x" * 1000)
        return more


def test_trimming_that_overtakes_the_walk_is_no_gap(trimmed, monkeypatch):
    monkeypatch.setattr(chain, "_PAGE", 3)
    oldest = parse_journal(records(trimmed)[0][0])[0]
    engine = Overtaken(trimmed)

    report = verify(engine)

    assert engine.pages > 2
    assert trimmed.verify_journal().first > oldest + 3
    assert report.sound
    assert (report.first, report.last) == (oldest, trimmed.revision())


def test_an_alteration_is_found_on_any_page(store, monkeypatch):
    monkeypatch.setattr(chain, "_PAGE_BYTES", 1)
    key, data = records(store)[-2]

    put(store, key, seal(key, data[SEAL_BYTES:-1] + b"x"))

    assert found(store) == (parse_journal(key)[0], "link")
