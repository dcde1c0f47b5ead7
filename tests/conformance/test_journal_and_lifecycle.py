"""The journal, watching it, and the lifecycle, through every door."""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime

import pytest

from kvstate.errors import Compacted, InvalidName, InvalidValue

LARGE = random.Random(2).randbytes(100_000)


def _kinds(store, since=0):
    return [(e.kind, e.scope, e.name) for e in store.journal(since)]


def test_every_commit_has_a_revision_and_says_what_it_did(store, clock):
    start = store.revision()
    ns = store.namespace("ns")
    ns["a"] = 1
    ns["a"] = [2]
    ns.set("b", 3, ttl=5)
    del ns["a"]
    clock.advance(5)
    store.lifecycle.run()

    events = list(store.journal(start))

    assert [(e.kind, e.name, e.value, e.previous) for e in events] == [
        ("set", "a", 1, None),
        ("set", "a", [2], 1),
        ("set", "b", 3, None),
        ("delete", "a", None, [2]),
        ("expire", "b", None, 3),
    ]
    assert [e.revision for e in events] == list(range(start + 1, start + 6))
    assert {e.scope for e in events} == {"ns"}
    assert all(e.actor for e in events)
    assert events[0].at < events[-1].at


def test_the_journal_of_artifacts(store):
    start = store.revision()
    a = store.artifacts
    a.put("t/w/a", b"x", metadata={"k": 1})
    a.put("t/w/a", b"xy")
    a.move("t/w/a", "cold")
    a.restore("t/w/a")
    a.rename("t/w/a", "t/w/b")
    a.update("t/w/b", {})
    a.delete("t/w/b")

    assert [kind for kind, _, _ in _kinds(store, start)] == [
        "put",
        "put",
        "move",
        "restore",
        "rename",
        "update",
        "remove",
    ]
    moved = list(store.journal(start))[2]
    assert (moved.name, moved.previous["tier"], moved.value["tier"]) == ("t/w/a", "hot", "cold")


def test_what_changes_nothing_makes_no_revision(store):
    ns = store.namespace("ns")
    ns["a"] = 1
    revision = store.revision()

    ns.delete("nope")
    ns.expire("nope", 5)
    store.artifacts.delete("t/w/nope")
    store.lifecycle.run()

    assert store.revision() == revision


def test_the_journal_can_be_read_in_parts(store):
    ns = store.namespace("ns")
    ns.set_many({f"k{number:04}": number for number in range(1000)})

    assert len(list(store.journal())) >= 1000
    first = list(store.journal(limit=10))
    assert len(first) == 10
    assert list(store.journal(store.revision())) == []


def test_a_large_value_is_whole_in_the_journal_after_it_is_gone(store):
    ns = store.namespace("ns")
    ns["a"] = "x" * 300_000
    ns["a"] = "y" * 300_000
    del ns["a"]

    events = list(store.journal())[-3:]

    assert [(e.value or "-")[0] + (e.previous or "-")[0] for e in events] == ["x-", "yx", "-y"]
    assert all(len(e.value or e.previous) == 300_000 for e in events)


def test_the_journal_is_a_chain_whose_tip_can_be_noted(store):
    ns = store.namespace("ns")
    ns["a"] = 1
    noted = store.verify_journal()
    ns.set_many({f"k{number}": number for number in range(300)})
    store.artifacts.put("t/w/a", LARGE)

    report = store.verify_journal(noted.tip)

    assert (noted.sound, noted.noted, noted.last) == (True, None, store.revision() - 2)
    assert (report.sound, report.noted, report.altered, report.why) == (True, True, None, "")
    assert report.records == noted.records + 4
    assert (report.first, report.last) == (1, store.revision())
    assert not store.verify_journal("ab" * 32).sound
    with pytest.raises(InvalidValue, match="expect"):
        store.verify_journal("ab")


def _audit(store, *facts, **options):
    return [tuple(record.get(fact) for fact in facts) for record in store.audit(**options)]


def test_the_audit_says_what_was_done_to_artifacts(store, clock):
    a = store.artifacts
    a.put("t/w/a", b"x")
    store.namespace("ns")["k"] = 1
    a.move("t/w/a", "warm")
    a.move("t/w/a", "cold")
    a.restore("t/w/a", "warm")
    a.update("t/w/a", {"k": 1})
    a.rename("t/w/a", "t/w/b")
    a.rename("t/w", "t/x")
    a.delete("t/x/b")
    a.put("t/w/old", b"x")
    clock.advance(days=91)
    store.lifecycle.run()

    assert _audit(store, "event_type", "artifact_id", "from_tier", "tier", "to") == [
        ("written", "a", None, "hot", None),
        ("promoted_to_warm", "a", "hot", "warm", None),
        ("promoted_to_cold", "a", "warm", "cold", None),
        ("restored_to_warm", "a", "cold", "warm", None),
        ("updated", "a", None, "warm", None),
        ("renamed", "a", None, None, "t/w/b"),
        ("renamed", None, None, None, "t/x"),
        ("deleted", "b", "warm", None, None),
        ("written", "old", None, "hot", None),
        ("purged", "old", "hot", None, None),
    ]
    purged = list(store.audit())[-1]
    assert purged["reason"] == "older than 90 days"
    assert purged["timestamp"] == clock_text(clock)
    assert (purged["tenant_id"], purged["workflow_id"], purged["dry_run"]) == ("t", "w", False)
    assert (purged["size_bytes"], purged["revision"]) == (1, store.revision())
    assert purged["digest"].startswith("xxh3:")
    assert purged["actor"]


def clock_text(clock):
    return datetime.fromtimestamp(clock.at_ns / 1e9, UTC).isoformat(timespec="microseconds")


def test_the_audit_of_a_tenant_or_an_artifact_follows_it_under_other_names(store):
    a = store.artifacts
    a.put("t/w/a", b"x")
    a.put("t/w/other", b"x")
    a.put("tt/w/a", b"x")
    a.rename("t/w", "t/v")
    a.rename("t/v/a", "u/v/a")
    a.delete("u/v/a")

    assert _audit(store, "event_type", artifact="t/w/a") == [("written",), ("renamed",)]
    assert _audit(store, "event_type", artifact="u/v/a") == [("renamed",), ("deleted",)]
    assert _audit(store, "event_type", "workflow_id", tenant="t") == [
        ("written", "w"),
        ("written", "w"),
        ("renamed", "w"),
        ("renamed", "v"),
    ]
    assert _audit(store, "tenant_id", tenant="u") == [("t",), ("u",)]
    assert _audit(store, "event_type", tenant="nobody") == []


def test_the_newest_of_the_audit_are_found_behind_any_number_of_other_changes(store):
    start = store.revision()
    for number in range(4):
        store.artifacts.put(f"t/w/{number}", b"x")
    for number in range(50):
        store.namespace("ns")["k"] = number
    ids = [(str(number),) for number in range(4)]

    assert _audit(store, "artifact_id", newest=3) == ids[1:]
    assert _audit(store, "artifact_id", newest=100) == ids
    assert _audit(store, "artifact_id", newest=0) == []
    assert _audit(store, "artifact_id", newest=1, artifact="t/w/1") == [("1",)]
    assert _audit(store, "artifact_id", newest=9, since=start + 2) == ids[2:]
    assert _audit(store, "artifact_id", since=start + 1, limit=2) == ids[1:3]
    with pytest.raises(InvalidValue, match="newest"):
        store.audit(newest=1, limit=1)
    with pytest.raises(InvalidValue, match="newest"):
        store.audit(newest=-1)


def test_a_watch_gives_what_was_committed_before_and_after_it_began(store):
    ns = store.namespace("ns")
    start = store.revision()
    ns["a"] = 1

    def later():
        ns["b"] = 2
        store.namespace("other")["c"] = 3
        ns["d"] = 4

    writer = threading.Thread(target=later)
    seen = []
    for event in store.watch("ns", since=start, timeout=20):
        seen.append((event.name, event.value))
        if event.name == "a":
            writer.start()
        if event.name == "d":
            break
    writer.join()

    assert seen == [("a", 1), ("b", 2), ("d", 4)]


def test_a_watch_from_now_on_begins_when_it_is_asked_for(store):
    watch = store.watch("ns", timeout=20)
    store.namespace("ns")["a"] = 1

    assert next(iter(watch)).name == "a"


def test_a_watch_ends_after_its_timeout(store):
    store.namespace("ns")["a"] = 1

    assert list(store.watch(timeout=0.05)) == []


def test_wait_gives_the_revision_that_came(store):
    revision = store.revision()
    writer = threading.Thread(target=lambda: store.namespace("ns").set("a", 1))
    writer.start()

    assert store.wait(revision, 20) > revision
    writer.join()
    assert store.wait(store.revision(), 0.01) == store.revision()


def test_artifacts_age_through_the_tiers_and_are_purged(store, clock):
    a = store.artifacts
    a.put("t/w/small", b"small")
    a.put("t/w/large", LARGE)
    tiers = []
    for days in (6.99, 0.01, 22.99, 0.01, 59.99):
        clock.advance(days=days)
        store.lifecycle.run()
        tiers.append((a.stat("t/w/small").tier, a.stat("t/w/large").tier))
        assert a.get("t/w/large") == LARGE
    clock.advance(days=0.01)

    outcome = store.lifecycle.run()

    assert tiers == [(t, t) for t in ("hot", "warm", "warm", "cold", "cold")]
    assert outcome.purged == 2
    assert list(a.list()) == []
    assert [kind for kind, _, _ in _kinds(store)][-2:] == ["purge", "purge"]


def test_the_plan_is_in_due_order_and_changes_nothing(store, clock):
    a = store.artifacts
    for number in range(5):
        a.put(f"t/w/{number}", bytes([number]))
        clock.advance(3600)
    a.move("t/w/3", "warm")
    clock.advance(days=30.5)
    revision = store.revision()

    plan = list(store.lifecycle.plan())

    assert [(m.name[-1], m.source, m.target) for m in plan] == [
        ("0", "hot", "cold"),
        ("1", "hot", "cold"),
        ("2", "hot", "cold"),
        ("4", "hot", "cold"),
        ("3", "warm", "cold"),
    ]
    assert [m.due_at_ns for m in plan] == sorted(m.due_at_ns for m in plan)
    assert [m.name for m in store.lifecycle.plan(limit=2)] == ["t/w/0", "t/w/1"]
    assert store.revision() == revision


def test_a_dry_run_counts_and_changes_nothing(store, clock):
    store.artifacts.put("t/w/a", LARGE)
    store.namespace("ns").set("k", 1, ttl=60)
    clock.advance(days=8)
    revision = store.revision()

    dry = store.lifecycle.run(dry_run=True)

    assert (dry.promoted_to_warm, dry.expired, dry.errors, dry.dry_run) == (1, 1, 0, True)
    assert store.revision() == revision
    assert store.artifacts.stat("t/w/a").tier == "hot"
    assert store.lifecycle.last() is None
    wet = store.lifecycle.run()
    assert (wet.promoted_to_warm, wet.expired) == (1, 1)
    assert store.lifecycle.last() == wet
    assert store.lifecycle.summary()["last_run"]["promoted_to_warm"] == 1


def test_a_key_that_was_renewed_survives_the_sweep(store, clock):
    ns = store.namespace("ns")
    ns.set("kept", 1, ttl=10)
    ns.set("gone", 1, ttl=10)
    clock.advance(5)
    ns.expire("kept", 10)
    clock.advance(6)

    assert store.lifecycle.run().expired == 1
    assert dict(ns) == {"kept": 1}


def test_a_sweep_takes_as_many_transactions_as_it_needs(store, clock):
    ns = store.namespace("ns")
    ns.set_many({f"k{number:05}": number for number in range(2500)}, ttl=10)
    clock.advance(11)

    assert store.lifecycle.run().expired == 2500
    assert store.lifecycle.next_due_ns() is None


def test_next_due_is_the_earliest_of_keys_and_artifacts(store, clock):
    assert store.lifecycle.next_due_ns() is None
    store.artifacts.put("t/w/a", b"x")
    assert store.lifecycle.next_due_ns() == clock.at_ns + 7 * 86400 * 10**9

    store.namespace("ns").set("k", 1, ttl=60)

    assert store.lifecycle.next_due_ns() == clock.at_ns + 60 * 10**9


def test_an_artifact_that_was_written_again_is_young_again(store, clock):
    store.artifacts.put("t/w/a", b"old")
    clock.advance(days=6)
    store.artifacts.put("t/w/a", b"new")
    clock.advance(days=6)

    assert store.lifecycle.run().promoted_to_warm == 0


def test_stats_count_what_there_is(store):
    store.artifacts.put("t/w/a", b"12345")
    store.artifacts.put("t/w/b", b"123")
    store.artifacts.move("t/w/b", "cold")
    store.namespace("ns")["k"] = 1

    stats = store.stats()

    assert stats["tiers"] == {
        "hot": {"artifacts": 1, "bytes": 5},
        "warm": {"artifacts": 0, "bytes": 0},
        "cold": {"artifacts": 1, "bytes": 3},
    }
    assert stats["namespaces"] == 1
    assert stats["revision"] == store.revision()


def test_check_of_a_sound_store_is_clean_and_counts(store):
    store.artifacts.put("t/w/a", LARGE)
    store.namespace("ns")["k"] = 1

    report = store.check(verify=True)

    assert report.clean
    assert (report.counts["artifacts"], report.counts["keys"], report.counts["files"]) == (1, 1, 1)


def test_watching_no_namespace_name_is_refused(store):
    with pytest.raises(InvalidName):
        list(store.watch("a/b", timeout=0.01))


def test_a_compacted_revision_is_an_error_that_names_the_oldest():
    error = Compacted(3, 17)

    assert error.oldest == 17
    assert "17" in str(error)
