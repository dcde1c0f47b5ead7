"""Events as audit records, and finding the newest events of a journal."""

from __future__ import annotations

import json

import pytest

from kvstate.audit import audit_record, newest_events
from kvstate.errors import Compacted
from kvstate.journal import Event
from kvstate.settings import StoreSettings
from tests.harness import START_NS

DAY_NS = 86400 * 10**9
HOT = {"id": 7, "tier": "hot", "size": 3, "digest": "xxh3:00", "written": START_NS - 2 * DAY_NS}
COLD = HOT | {"tier": "cold"}


def event(kind, value=None, previous=None, *, name="acme/weekly/report.md", scope="", why=""):
    return Event(17, START_NS, kind, scope, name, value, previous, "uid:1000", why)


def test_a_record_has_the_fields_of_an_audit_log_line():
    record = audit_record(event("move", COLD, HOT, why="older than 30 days"))

    assert list(json.loads(json.dumps(record)).items()) == [
        ("timestamp", "2023-11-14T22:13:20.000000+00:00"),
        ("event_type", "promoted_to_cold"),
        ("tenant_id", "acme"),
        ("workflow_id", "weekly"),
        ("artifact_id", "report.md"),
        ("age_days", 2.0),
        ("dry_run", False),
        ("actor", "uid:1000"),
        ("reason", "older than 30 days"),
        ("revision", 17),
        ("tier", "cold"),
        ("from_tier", "hot"),
        ("size_bytes", 3),
        ("digest", "xxh3:00"),
    ]


@pytest.mark.parametrize(
    ("kind", "value", "previous", "event_type"),
    [
        ("put", HOT, None, "written"),
        ("put", HOT, COLD, "written"),
        ("remove", None, HOT, "deleted"),
        ("purge", None, COLD, "purged"),
        ("trash", None, HOT, "trashed"),
        ("undelete", HOT, None, "undeleted"),
        ("hold", HOT, HOT, "held"),
        ("release", HOT, None, "released"),
        ("update", HOT, None, "updated"),
        ("rename", {"to": "acme/weekly/b"}, None, "renamed"),
        ("move", HOT | {"tier": "warm"}, HOT, "promoted_to_warm"),
        ("move", COLD, HOT, "promoted_to_cold"),
        ("move", HOT, COLD, "restored_to_hot"),
        ("move", HOT | {"tier": "warm"}, COLD, "restored_to_warm"),
        ("restore", HOT, COLD, "restored_to_hot"),
        ("restore", HOT | {"tier": "warm"}, COLD, "restored_to_warm"),
    ],
)
def test_what_was_done_has_a_name(kind, value, previous, event_type):
    assert audit_record(event(kind, value, previous))["event_type"] == event_type


@pytest.mark.parametrize(
    "other",
    [
        event("set", 1, scope="ns"),
        event("rename", {"to": "k2"}, scope="ns", name="k"),
        event("mkdir", name="acme/weekly"),
        event("rmdir", name="acme/weekly"),
        event("update", name="acme/weekly"),
        event("create", name=""),
    ],
)
def test_what_is_not_about_an_artifact_has_no_record(other):
    assert audit_record(other) is None


def test_an_age_that_the_journal_does_not_know_is_none():
    unknown = {key: value for key, value in HOT.items() if key != "written"}

    assert audit_record(event("remove", None, unknown))["age_days"] is None
    assert audit_record(event("rename", {"to": "a/b/c"}, HOT))["age_days"] is None


@pytest.mark.parametrize(
    ("written_ns", "days"),
    [(START_NS, 0.0), (START_NS + DAY_NS, 0.0), (START_NS - 734_400 * 10**9, 8.5)],
)
def test_the_age_is_from_the_last_write_on(written_ns, days):
    state = HOT | {"written": written_ns}

    assert audit_record(event("remove", None, state))["age_days"] == days


def test_what_was_just_written_is_of_no_age_whatever_was_there_before():
    assert audit_record(event("put", {"tier": "hot"}, HOT))["age_days"] == 0.0


def test_what_a_rename_replaced_is_not_taken_for_what_was_renamed():
    record = audit_record(event("rename", {"to": "acme/weekly/b"}, HOT))

    assert record["to"] == "acme/weekly/b"
    assert {"tier", "from_tier", "size_bytes", "digest"}.isdisjoint(record)


def test_a_folder_that_was_renamed_has_no_artifact():
    record = audit_record(event("rename", {"to": "acme/daily"}, name="acme/weekly"))

    assert (record["tenant_id"], record["workflow_id"], record["artifact_id"]) == (
        "acme",
        "weekly",
        None,
    )


def test_an_artifact_below_folders_keeps_their_names():
    record = audit_record(event("put", HOT, name="acme/weekly/2024/01/report.md"))

    assert record["artifact_id"] == "2024/01/report.md"


class Counting:
    """A store that counts what is read of its journal."""

    def __init__(self, store):
        self._store = store
        self.read = 0
        self.revision = store.revision

    def journal(self, *arguments, **options):
        for found in self._store.journal(*arguments, **options):
            self.read += 1
            yield found


def test_the_newest_events_cost_no_more_than_they_are(store):
    for number in range(500):
        store.namespace("ns").set("k", number)
    counting = Counting(store)

    found = newest_events(counting, 20)

    assert [e.value for e in found] == list(range(480, 500))
    assert counting.read == 20


def test_the_newest_that_are_rare_are_each_read_about_once(store):
    for number in range(500):
        store.namespace("ns").set("k", number)
    counting = Counting(store)

    found = newest_events(counting, 2, wanted=lambda e: isinstance(e.value, int) and e.value < 10)

    assert [e.value for e in found] == [8, 9]
    assert counting.read <= 520


def test_the_newest_of_a_trimmed_journal_are_all_that_there_are(tmp_path, clock, open_checked):
    short = StoreSettings(journal_bytes_max=1 << 16)
    store = open_checked(tmp_path / "store", clock=clock, settings=short)
    for number in range(600):
        store.namespace("ns").set("k", f"{number}" * 100)
    every = list(store.journal())
    assert every[0].revision > 1

    assert newest_events(store, 10_000) == every
    assert newest_events(store, 3, since=1) == every[-3:]
    with pytest.raises(Compacted):
        newest_events(store, 10_000, since=1)
