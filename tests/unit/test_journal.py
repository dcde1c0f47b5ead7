"""Trimming the journal, and reading one that was trimmed."""

from __future__ import annotations

import pytest

from kvstate.errors import Compacted
from kvstate.settings import StoreSettings


@pytest.fixture
def short(tmp_path, clock, open_checked):
    """A store whose journal holds 64 KiB, or an hour."""
    settings = StoreSettings(
        journal_bytes_max=1 << 16, journal_age_seconds=3600, inline_bytes_max=4096
    )
    return open_checked(tmp_path / "store", clock=clock, settings=settings)


def test_churn_never_fills_the_disk(short):
    ns = short.namespace("ns")
    for number in range(1500):
        ns.set("k", "x" * 500)
        if number == 750:
            halfway = short.stats()["records_bytes"]

    events = list(short.journal())
    assert len(events) < 300
    assert events[-1].revision == short.revision()
    assert short.stats()["records_bytes"] <= halfway + (64 << 10)


def test_what_is_too_old_goes_and_the_newest_stays(short, clock):
    ns = short.namespace("ns")
    for number in range(100):
        ns.set("k", number)
    clock.advance(7200)
    while short.revision() % 64:
        ns.set("k", "new")

    assert {event.value for event in short.journal()} == {"new"}
    assert short.journal(short.revision() - 1)


def test_a_revision_that_was_trimmed_is_an_error_that_names_the_oldest(short):
    ns = short.namespace("ns")
    for _ in range(700):
        ns.set("k", "x" * 500)

    with pytest.raises(Compacted) as caught:
        list(short.journal(since=1))
    with pytest.raises(Compacted):
        list(short.watch(since=1, timeout=0.01))

    oldest = caught.value.oldest
    assert next(short.journal()).revision == oldest
    assert next(short.journal(since=oldest - 1)).revision == oldest


def test_a_spilled_value_lives_as_long_as_the_journal_mentions_it(short, clock):
    ns = short.namespace("ns")
    ns.set("k", "x" * 10_000)
    ns.delete("k")
    assert [len(e.value or e.previous) for e in short.journal(1)] == [10_000, 10_000]

    clock.advance(7200)
    while short.revision() % 64:
        ns.set("other", 1)

    assert short.check().counts["blobs"] == 0


def test_who_acts_is_in_the_journal(short):
    with short.acting("uid:1000"):
        short.namespace("ns")["a"] = 1
    short.namespace("ns")["b"] = 1

    assert [event.actor == "uid:1000" for event in short.journal()][-2:] == [True, False]
