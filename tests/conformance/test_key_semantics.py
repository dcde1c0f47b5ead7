"""What keys can do beyond being set and read, through every door."""

from __future__ import annotations

import math
import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest

from kvstate.errors import (
    Compacted,
    Conflict,
    Exists,
    Full,
    InvalidValue,
    NotFound,
    QuotaExceeded,
)
from kvstate.indexes import Range
from kvstate.locks import LOCKS
from tests.harness import wait_for

LARGE = "v" * 200_000


@pytest.fixture
def ns(store):
    return store.namespace("ns")


def at(clock):
    return datetime.fromtimestamp(clock.at_ns / 1e9, UTC)


def kinds(store, since):
    return [(event.kind, event.name) for event in store.journal(since)]


class TestTimeToLive:
    def test_a_namespace_has_a_default_that_set_and_increment_follow(self, store, ns):
        store.configure("ns", ttl=60)

        ns["a"] = 1
        ns.increment("b")
        ns.set("c", 1, ttl=5)
        ns.set("d", 1, ttl=math.inf)
        ns.set_many({"e": 1})

        assert [ns.ttl(key) for key in "abcde"] == [60, 60, 5, None, 60]

    def test_the_default_is_kept_in_the_store_and_can_be_taken_back(self, store, ns):
        settings = store.configure("ns", ttl=timedelta(hours=1))

        assert settings.ttl == 3600
        assert store.namespace("ns").settings() == settings
        assert store.configure("ns", ttl=None).ttl is None
        ns["a"] = 1
        assert ns.ttl("a") is None

    @pytest.mark.parametrize(
        ("before", "ttl", "only_if", "changed"),
        [
            (None, 10, "absent", True),
            (5, 10, "absent", False),
            (None, 10, "present", False),
            (5, 10, "present", True),
            (5, 10, "longer", True),
            (20, 10, "longer", False),
            (None, 10, "longer", False),
            (5, 10, "shorter", False),
            (20, 10, "shorter", True),
            (None, 10, "shorter", True),
        ],
    )
    def test_expire_only_if(self, ns, before, ttl, only_if, changed):
        ns.set("a", 1, ttl=before)

        assert ns.expire("a", ttl, only_if=only_if) is changed
        assert ns.ttl("a") == (ttl if changed else before)

    def test_expire_refuses_other_conditions(self, ns):
        ns["a"] = 1

        with pytest.raises(InvalidValue, match="only_if"):
            ns.expire("a", 5, only_if="sometimes")
        with pytest.raises(InvalidValue):
            ns.expire("a", -5)
        with pytest.raises(InvalidValue):
            ns.expire("a")

    def test_an_expiry_leaves_revision_and_times_alone(self, ns, clock):
        revision = ns.set("a", 1)
        before = ns.entry("a")
        clock.advance(1)

        ns.expire("a", 10)
        ns.persist("a")

        assert ns.entry("a") == before
        ns.set("a", 2, if_revision=revision)

    def test_touch_begins_the_time_anew(self, store, ns, clock):
        store.configure("ns", ttl=60)
        ns["a"] = 1
        ns.set("b", 1, ttl=math.inf)
        clock.advance(50)

        assert ns.touch("a") is True
        assert ns.ttl("a") == 60
        assert ns.touch("a", 10) is True
        assert ns.ttl("a") == 10
        assert ns.touch("nope") is False

    def test_touch_without_any_ttl_says_whether_it_is_there(self, ns):
        ns["a"] = 1

        assert ns.touch("a") is True
        assert ns.touch("b") is False
        assert ns.ttl("a") is None

    def test_milliseconds_count(self, ns, clock):
        ns.set("a", 1, ttl=0.002)
        clock.advance(0.001)
        assert ns.get("a") == 1

        clock.advance(0.001)

        assert ns.get("a") is None

    def test_a_sliding_ttl_is_renewed_by_reading_but_not_too_often(self, store, ns, clock):
        store.configure("ns", ttl=100, sliding=True)
        ns["a"] = 1
        revision = store.revision()

        clock.advance(5)
        assert ns["a"] == 1
        assert store.revision() == revision
        clock.advance(6)
        assert ns["a"] == 1
        assert ns.ttl("a") == 100
        for _ in range(30):
            clock.advance(90)
            assert ns["a"] == 1
        clock.advance(101)
        assert ns.get("a") is None

    def test_sliding_needs_a_ttl(self, store):
        with pytest.raises(InvalidValue, match="sliding"):
            store.configure("ns", sliding=True)

    def test_a_whole_prefix_expires_in_one_commit(self, store, ns, clock):
        ns.set_many({"2024-1": 1, "2024-2": 2, "2025-1": 3})
        before = store.revision()

        assert ns.expire_prefix("2024-", 10) == 2

        assert store.revision() == before + 1
        clock.advance(10)
        assert dict(ns) == {"2025-1": 3}
        assert ns.expire_prefix("", 10) == 1

    def test_an_expiry_is_an_event_with_the_last_value(self, store, ns, clock):
        ns.set("a", "last", ttl=1)
        clock.advance(1)
        before = store.revision()

        store.lifecycle.run()

        event = next(iter(store.journal(before)))
        assert (event.kind, event.scope, event.name) == ("expire", "ns", "a")
        assert (event.value, event.previous) == (None, "last")

    def test_what_is_due_goes_with_the_next_write(self, store, ns, clock):
        ns.set("a", "last", ttl=1)
        clock.advance(1)
        before = store.revision()

        ns["b"] = 1

        assert kinds(store, before) == [("set", "b"), ("expire", "a")]

    def test_a_key_that_is_renewed_survives_the_sweep(self, store, ns, clock):
        ns.set("a", 1, ttl=1)
        ns.set("b", 1, ttl=1)
        ns.expire("a", 100)
        clock.advance(1)

        assert store.lifecycle.run().expired == 1
        assert dict(ns) == {"a": 1}

    def test_a_clock_that_jumps_back_and_forth_loses_nothing_that_is_not_due(
        self, store, ns, clock
    ):
        ns.set("a", 1, ttl=3600)
        clock.advance(-7200)
        ns["b"] = 2
        store.lifecycle.run()
        assert dict(ns) == {"a": 1, "b": 2}

        clock.advance(7200 + 3599)
        store.lifecycle.run()

        assert dict(ns) == {"a": 1, "b": 2}

    def test_a_clock_that_jumps_is_said_in_the_log(self, store, ns, clock, caplog):
        ns["a"] = 1
        clock.advance(-7200)
        ns["a"] = 2
        clock.advance(3600)
        ns["a"] = 3
        ns["a"] = 4

        back, forward = [record.message for record in caplog.records]
        # Time goes on meanwhile, on a starved machine by seconds.
        said = re.fullmatch(r"the clock jumped (\d+) s back: what was due expires later", back)
        assert said is not None
        assert 7200 <= int(said[1]) < 7320
        said = re.fullmatch(r"the clock jumped (\d+) s forward: what is due by it expires", forward)
        assert said is not None
        assert 3480 < int(said[1]) <= 3600

    def test_archived_on_expiry(self, store, clock):
        store.configure("polly:pr", on_expire="archive")
        ns = store.namespace("polly:pr")
        ns.set("plain", "text", ttl=1)
        ns.set("a/b:c", {"stage": 1}, ttl=1)
        ns.set("large", LARGE, ttl=1)
        clock.advance(1)

        assert store.lifecycle.run().expired == 3

        assert len(ns) == 0
        read = store.artifacts.get
        assert read("polly%3Apr/expired/plain") == b"text"
        assert read("polly%3Apr/expired/a%2Fb%3Ac") == b'{\n  "stage": 1\n}\n'
        assert read("polly%3Apr/expired/large") == LARGE.encode()

    def test_what_cannot_be_archived_stays_hidden_and_is_told(self, store, ns, clock):
        store.configure("ns", on_expire="archive")
        store.artifacts.put("ns/expired/a/in-the-way", b"")
        ns.set("a", 1, ttl=1)
        clock.advance(1)
        ns["b"] = 1

        outcome = store.lifecycle.run()

        assert (outcome.expired, outcome.errors) == (0, 1)
        assert outcome.failures[0][0] == "ns/expired/a"
        assert ns.get("a") is None
        store.artifacts.delete("ns/expired/a/in-the-way")
        assert store.lifecycle.run().expired == 1
        assert store.artifacts.get("ns/expired/a") == b"1\n"


class TestAtOnce:
    def test_increment_counts_from_the_default_and_keeps_the_expiry(self, ns):
        assert ns.increment("n") == 1
        assert ns.increment("n", 41) == 42
        assert ns.increment("n", -0.5) == 41.5
        assert ns.increment("m", 1, default=10, ttl=60) == 11
        ns.increment("m", ttl=5)
        assert ns.ttl("m") == 60
        assert ns.increment("d", Decimal("0.1"), default=Decimal(0)) == Decimal("0.1")

    @pytest.mark.parametrize("value", ["1", True, None, [1]])
    def test_only_numbers_are_incremented(self, store, ns, value):
        ns["a"] = value
        before = store.revision()

        with pytest.raises(InvalidValue):
            ns.increment("a")
        with pytest.raises(InvalidValue):
            ns.increment("b", value if value is not None else "1")

        assert ns["a"] == value
        assert store.revision() == before

    def test_append_makes_a_list_and_may_bound_it(self, ns):
        assert ns.append("a", 1) == 1
        assert ns.append("a", 2, 3) == 3
        assert ns.append("a", 4, limit=2) == 2
        assert ns["a"] == [3, 4]
        ns["b"] = "text"
        with pytest.raises(InvalidValue):
            ns.append("b", 1)

    def test_update_by_a_function_keeps_the_expiry(self, ns):
        ns.set("a", {"n": 1}, ttl=60)

        assert ns.update("a", lambda value: {**value, "n": value["n"] + 1}) == {"n": 2}

        assert ns["a"] == {"n": 2}
        assert ns.ttl("a") == 60
        assert ns.update("new", lambda value: value) is None

    def test_no_increment_and_no_update_is_lost(self, ns):
        def work():
            for _ in range(20):
                ns.increment("n")
                ns.update("m", lambda value: (value or 0) + 1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert (ns["n"], ns["m"]) == (80, 80)

    def test_delete_prefix_is_one_commit(self, store, ns):
        ns.set_many({"a1": 1, "a2": 2, "b": LARGE})
        before = store.revision()

        assert ns.delete_prefix("a") == 2
        assert store.revision() == before + 1
        assert list(ns) == ["b"]
        ns.clear()
        assert len(ns) == 0
        assert store.namespace("none").delete_prefix("") == 0

    def test_upsert_counts_and_leaves_alone_what_is_the_same(self, store, ns):
        ns.set("same", {"a": 1, "b": 2}, ttl=60)
        ns.set_many({"other": 1, "large": LARGE, "float": 1})
        before = store.revision()

        upserted = ns.upsert_many(
            {"same": {"b": 2, "a": 1}, "other": 2, "large": LARGE, "float": 1.0, "new": None}
        )

        assert upserted == (5, 1, 2, 2)
        assert ns.ttl("same") == 60
        assert store.revision() == before + 1
        assert ns.upsert_many({"same": {"a": 1, "b": 2}, "large": LARGE}).unchanged == 2
        assert store.revision() == before + 1

    def test_many_large_values_are_set_at_once(self, store, ns):
        values = {f"k{n}": LARGE + str(n % 2) for n in range(4)} | {"small": 1}
        before = store.revision()

        ns.set_many(values)

        assert store.revision() == before + 1
        assert dict(ns) == values
        assert ns.get_many(values) == values

    def test_many_keys_are_read_as_of_one_revision(self, ns):
        keys = [f"k{n:05}" for n in range(5000)]
        ns.set_many(dict.fromkeys(keys, 0))
        stop = threading.Event()

        def write():
            n = 0
            while not stop.is_set():
                n += 1
                ns.set_many(dict.fromkeys(keys, n))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(8):
                found = ns.get_many(keys)
                assert len(found) == 5000
                assert len(set(found.values())) == 1
        finally:
            stop.set()
            writer.join(60)

    def test_setdefault_and_pop(self, ns):
        assert ns.setdefault("a", 1) == 1
        assert ns.setdefault("a", 2) == 1
        assert ns.pop("a") == 1
        assert ns.pop("a", "gone") == "gone"
        with pytest.raises(NotFound):
            ns.pop("a")

    def test_what_is_in_use_is_counted(self, ns, clock):
        ns.set_many({"ab": 1, "large": LARGE})
        ns.set("gone", 1, ttl=1)
        used = ns.used()
        assert used.keys == 3
        assert used.bytes == 2 + 1 + 5 + len(LARGE) + 5 + 4 + 1
        assert len(ns) == 3

        clock.advance(1)

        assert len(ns) == 2
        ns.delete("ab")
        assert ns.used().keys == 1


class TestTransactions:
    def test_several_namespaces_change_together(self, store):
        a, b = store.namespace("a"), store.namespace("b")
        a["from"] = 10
        before = store.revision()

        with store.transaction() as t:
            t.namespace("a")["from"] -= 4
            t.namespace("b").increment("to", 4)
            assert t.namespace("b")["to"] == 4
            assert "to" not in b

        assert (a["from"], b["to"]) == (6, 4)
        assert t.revision == store.revision() == before + 1

    def test_an_exception_leaves_nothing(self, store, ns):
        with pytest.raises(ZeroDivisionError), store.transaction() as t:
            t.namespace("ns")["a"] = 1
            raise ZeroDivisionError

        assert dict(ns) == {}

    def test_who_comes_in_between_makes_a_conflict(self, store, ns):
        ns["a"] = 1

        with pytest.raises(Conflict), store.transaction() as t:
            t.namespace("ns").set("b", t.namespace("ns")["a"])
            ns["a"] = 2

        assert dict(ns) == {"a": 2}

    def test_an_absent_key_and_a_range_are_read_as_well(self, store, ns):
        with pytest.raises(Conflict), store.transaction() as t:
            assert t.namespace("ns").get("a") is None
            t.namespace("ns")["b"] = 1
            ns["a"] = 2
        with pytest.raises(Conflict), store.transaction() as t:
            assert len(t.namespace("ns")) == 1
            t.namespace("ns")["b"] = 1
            ns["c"] = 2

        assert dict(ns) == {"a": 2, "c": 2}

    def test_a_read_that_differs_from_the_first_says_so_at_once(self, store, ns):
        ns["a"] = 1
        t = store.transaction()
        assert t.namespace("ns")["a"] == 1
        ns["a"] = 2

        with pytest.raises(Conflict):
            t.namespace("ns").get("a")

    def test_what_only_reads_commits_nothing(self, store, ns):
        ns["a"] = 1
        before = store.revision()

        with store.transaction() as t:
            assert dict(t.namespace("ns")) == {"a": 1}

        assert t.revision is None
        assert store.revision() == before

    def test_it_sees_its_own_writes_in_order(self, store, ns):
        ns.set_many({"a": 1, "b": 2, "c": 3})

        with store.transaction() as t:
            mine = t.namespace("ns")
            mine.delete("b")
            mine["aa"] = 5
            mine.append("list", 1, 2)
            assert [(e.key, e.value) for e in mine.scan()] == [
                ("a", 1),
                ("aa", 5),
                ("c", 3),
                ("list", [1, 2]),
            ]
            assert mine.get_many(["b", "aa"]) == {"aa": 5}
            assert mine.pop("c") == 3

        assert dict(ns) == {"a": 1, "aa": 5, "list": [1, 2]}

    def test_transact_runs_again_until_it_fits(self, store, ns):
        ns["n"] = 0
        runs = []

        def bump(t):
            runs.append(1)
            value = t.namespace("ns")["n"]
            if len(runs) == 1:
                ns["n"] = 10
            t.namespace("ns")["n"] = value + 1
            return value

        assert store.transact(bump) == 10
        assert (ns["n"], len(runs)) == (11, 2)

    def test_concurrent_transfers_keep_the_sum(self, store, ns):
        ns.set_many({"a": 100, "b": 100})

        def move(t):
            mine = t.namespace("ns")
            mine["a"] -= 1
            mine["b"] += 1

        def work():
            for _ in range(10):
                store.transact(move)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert dict(ns) == {"a": 70, "b": 130}

    def test_after_its_end_it_is_over(self, store):
        with store.transaction() as t:
            t.namespace("ns")["a"] = 1

        with pytest.raises(Conflict):
            t.namespace("ns").set("b", 1)
        with pytest.raises(Conflict):
            t.commit()

    def test_large_values_and_expiries_go_along(self, store, ns):
        with store.transaction() as t:
            t.namespace("ns").set("large", LARGE, ttl=60)
            t.namespace("other").set("large", LARGE)

        assert ns["large"] == LARGE
        assert ns.ttl("large") == 60


class TestHistory:
    def test_versions_are_kept_up_to_the_number(self, store, ns):
        store.configure("ns", history=3)
        revisions = [ns.set("a", n) for n in range(5)]

        history = ns.history("a")

        assert [v.value for v in history] == [2, 3, 4]
        assert [v.revision for v in history] == revisions[2:]
        assert [v.value for v in ns.history("a", 1)] == [4]
        assert ns.get("a", revision=revisions[2]) == 2
        with pytest.raises(Compacted):
            ns.get("a", revision=revisions[1])
        assert ns.history("nope") == []

    def test_without_history_only_the_present_is_known(self, ns):
        first = ns.set("a", 1)
        second = ns.set("a", 2)

        assert [v.value for v in ns.history("a")] == [2]
        assert ns.get("a", revision=second) == 2
        with pytest.raises(Compacted):
            ns.get("a", revision=first)

    def test_deleted_and_expired_are_part_of_it_and_nothing_comes_back(self, store, ns, clock):
        store.configure("ns", history=10)
        ns["a"] = 1
        deleted = store.revision() + 1
        ns.delete("a")
        second = ns.set("a", 2, ttl=5)
        clock.advance(5)

        assert [v.kind for v in ns.history("a")] == ["set", "delete", "set", "expire"]
        assert [v.value for v in ns.history("a")] == [1, None, 2, None]
        assert ns.get("a") is None
        assert ns.get("a", revision=deleted) is None
        assert ns.get("a", revision=second) == 2
        assert ns.get("a", revision=store.revision()) is None
        ns["a"] = 3
        assert [v.value for v in ns.history("a")] == [1, None, 2, None, 3]

    def test_the_past_by_time(self, store, ns, clock):
        store.configure("ns", history=10)
        start = at(clock)
        clock.advance(10)
        ns.set("a", 1, ttl=30)
        clock.advance(10)
        ns["a"] = 2
        clock.advance(10)

        assert ns.get("a", at=start + timedelta(seconds=15)) == 1
        assert ns.get("a", at=start + timedelta(seconds=20)) == 2
        assert ns.get("a", at=start + timedelta(seconds=5)) is None
        assert ns.get("a", "then", at=start + timedelta(seconds=5)) == "then"
        with pytest.raises(Compacted):
            ns.get("a", at=start - timedelta(seconds=5))
        with pytest.raises(InvalidValue):
            ns.get("a", at=start, revision=3)

    def test_a_rollback_is_a_new_revision(self, store, ns):
        store.configure("ns", history=10)
        first = ns.set("a", LARGE)
        ns["a"] = 2

        revision = ns.rollback("a", first)

        assert ns["a"] == LARGE
        assert revision == store.revision()
        assert [v.value for v in ns.history("a")] == [LARGE, 2, LARGE]
        with pytest.raises(NotFound):
            ns.rollback("nope", first)

    def test_a_namespace_as_it_was(self, store, ns):
        store.configure("ns", history=10)
        ns.set_many({"a": 1, "b": 1, "c": 1})
        then = store.revision()
        ns["b"] = 2
        ns.delete("a")
        ns["d"] = 4
        ns.rename("c", "e")

        def read(**options):
            return [(e.key, e.value) for e in ns.scan(**options)]

        assert read(revision=then) == [("a", 1), ("b", 1), ("c", 1)]
        assert read(revision=then, reverse=True) == [("c", 1), ("b", 1), ("a", 1)]
        assert read(revision=then + 1) == [("a", 1), ("b", 2), ("c", 1)]
        assert read(revision=store.revision()) == [("b", 2), ("d", 4), ("e", 1)]
        assert read(revision=then, start="b", limit=1) == [("b", 1)]
        assert read(prefix="c", revision=then) == [("c", 1)]

    def test_the_history_goes_along_with_a_rename(self, store, ns):
        store.configure("ns", history=10)
        ns.set_many({"a": 1, "b": "other"})
        then = store.revision()
        ns["a"] = 2
        ns.rename("a", "c")
        ns["c"] = 3
        ns.rename("c", "b", replace=True)

        assert [v.value for v in ns.history("b")] == [1, 2, 2, 3, 3]
        assert [(v.kind, v.value) for v in ns.history("a")][-1] == ("delete", None)
        assert ns.get("b", revision=then) == "other"
        assert ns.get("a", revision=then) == 1
        assert ns.get("c", revision=then) is None

    def test_many_keys_as_they_were(self, store, ns):
        store.configure("ns", history=5)
        ns.set_many({f"k{n:04}": n for n in range(1500)})
        then = store.revision()
        ns.delete_prefix("k0")
        ns.set_many({f"k{n:04}x": n for n in range(100)})

        assert [e.value for e in ns.scan(revision=then)] == list(range(1500))
        assert [e.value for e in ns.scan(revision=then, reverse=True)] == list(range(1500))[::-1]

    def test_versions_go_when_they_are_too_old(self, store, ns, clock):
        store.configure("ns", history=10, history_age=100)
        ns["a"] = 1
        clock.advance(50)
        ns["a"] = 2
        clock.advance(50)
        ns["a"] = 3
        clock.advance(50)
        store.lifecycle.run()
        assert [v.value for v in ns.history("a")] == [2, 3]

        clock.advance(1000)
        store.lifecycle.run()

        assert [v.value for v in ns.history("a")] == [3]

    def test_of_a_deleted_key_nothing_is_left_in_the_end_and_that_is_known(self, store, ns, clock):
        store.configure("ns", history=10, history_age=100)
        first = ns.set("a", 1)
        ns.delete("a")
        gone = store.revision()
        clock.advance(101)

        store.lifecycle.run()

        assert ns.history("a") == []
        assert ns.get("a", revision=gone) is None
        with pytest.raises(Compacted):
            ns.get("a", revision=first)
        with pytest.raises(Compacted):
            list(ns.scan(revision=first))
        ns["a"] = 2
        assert ns.get("a", revision=gone) is None

    def test_a_history_that_is_switched_off_is_dropped(self, store, ns):
        store.configure("ns", history=10)
        first = ns.set("a", LARGE)
        ns["a"] = 2

        store.configure("ns", history=0)

        assert [v.value for v in ns.history("a")] == [2]
        with pytest.raises(Compacted):
            ns.get("a", revision=first)


class TestTypes:
    @dataclass
    class Release:
        name: str
        at: datetime
        sizes: list[int]

    class Check(msgspec.Struct):
        name: str
        passed: bool = False

    def test_dataclasses_and_structs_are_kept_as_their_fields(self, ns):
        release = self.Release("1.0", datetime(2026, 1, 2, tzinfo=UTC), [1, 2])
        ns["release"] = release
        ns.set_many({"check": self.Check("lint", passed=True)})

        assert ns["release"] == {"name": "1.0", "at": release.at, "sizes": [1, 2]}
        assert ns.get("release", as_type=self.Release) == release
        assert ns.get("check", as_type=self.Check) == self.Check("lint", passed=True)
        assert ns.get("nope", as_type=self.Check) is None

    def test_what_does_not_fit_the_type_says_where(self, ns):
        ns["check"] = {"name": 7}

        with pytest.raises(InvalidValue, match=r"\$\.name"):
            ns.get("check", as_type=self.Check)

    def test_a_schema_refuses_what_does_not_fit_with_the_path(self, store, ns):
        schema = {
            "type": "object",
            "properties": {"stage": {"enum": ["new", "done"]}, "n": {"type": "array"}},
            "required": ["stage"],
        }
        store.configure("ns", schema=schema)
        ns["a"] = {"stage": "new"}
        before = store.revision()

        with pytest.raises(InvalidValue, match=r"\$\.stage"):
            ns["a"] = {"stage": "old"}
        with pytest.raises(InvalidValue, match=r"required"):
            ns.set_many({"b": {"stage": "new"}, "c": {}})
        with pytest.raises(InvalidValue):
            ns.update("a", lambda _: 1)

        assert dict(ns) == {"a": {"stage": "new"}}
        assert store.revision() == before
        assert ns.settings().schema == schema
        with pytest.raises(InvalidValue, match="schema"):
            store.configure("ns", schema={"type": "nonsense"})
        store.configure("ns", schema=None)
        ns["a"] = 1


class TestIndex:
    @pytest.fixture
    def episodes(self, store):
        store.configure("ns", index=["stage", "meta.owner", "n"])
        ns = store.namespace("ns")
        ns.set_many(
            {
                f"e{n:03}": {
                    "stage": ["new", "failed", "done"][n % 3],
                    "meta": {"owner": "ada" if n % 2 else "bob"},
                    "n": n - 20,
                }
                for n in range(60)
            }
        )
        return ns

    def test_find_by_value_in_key_order(self, episodes):
        found = [entry.key for entry in episodes.find(stage="failed")]

        assert found == [f"e{n:03}" for n in range(60) if n % 3 == 1]
        assert list(episodes.find(stage="nope")) == []

    def test_find_by_a_path_and_by_several(self, episodes):
        found = episodes.find(where={"meta.owner": "ada", "stage": "new"})

        assert [e.value["n"] + 20 for e in found] == [n for n in range(60) if n % 2 and n % 3 == 0]

    def test_a_range_is_in_the_order_of_the_values(self, episodes):
        found = [e.value["n"] for e in episodes.find(n=Range(-3, 4))]

        assert found == [-3, -2, -1, 0, 1, 2, 3]
        assert [e.value["n"] for e in episodes.find(n=Range(35), reverse=True)] == [
            39,
            38,
            37,
            36,
            35,
        ]
        assert [e.value["n"] for e in episodes.find(n=Range(None, -18))] == [-20, -19]

    @pytest.mark.parametrize("reverse", [False, True])
    def test_pages(self, episodes, reverse):
        whole = [e.key for e in episodes.find(n=Range(), reverse=reverse)]
        pages, after = [], None
        while page := list(episodes.find(n=Range(), limit=7, after=after, reverse=reverse)):
            pages += [e.key for e in page]
            after = page[-1]

        assert pages == whole
        assert len(whole) == 60

    def test_it_follows_every_change(self, store, episodes, clock):
        def failed():
            return [e.key for e in episodes.find(stage="failed", limit=2)]

        assert failed() == ["e001", "e004"]
        episodes["e001"] = {"stage": "done"}
        assert failed() == ["e004", "e007"]
        episodes.delete("e004")
        episodes.expire("e007", 1)
        episodes.rename("e010", "e000a")
        clock.advance(1)
        assert failed() == ["e000a", "e013"]
        store.lifecycle.run()
        assert failed() == ["e000a", "e013"]
        episodes["e000a"] = "not even a mapping"
        assert failed() == ["e013", "e016"]

    def test_it_is_built_for_what_is_there(self, store, ns):
        ns.set_many({f"k{n:04}": {"n": n % 5, "big": "x"} for n in range(2500)})
        ns["large"] = {"n": 3, "big": LARGE}

        store.configure("ns", index=["n"])

        assert sum(1 for _ in ns.find(n=3)) == 501
        store.configure("ns", index=[])
        with pytest.raises(InvalidValue, match="no index"):
            list(ns.find(n=3))
        store.configure("ns", index=["big"])
        assert [e.key for e in ns.find(big=LARGE)] == ["large"]

    def test_it_is_built_while_keys_wait_to_be_swept(self, store, ns, clock):
        ns.set("gone", {"n": 1}, ttl=5)
        ns["there"] = {"n": 1}
        clock.advance(10)

        store.configure("ns", index=["n"])

        assert [entry.key for entry in ns.find(n=1)] == ["there"]
        assert store.check().clean
        assert store.lifecycle.run().expired == 1
        assert store.check().clean

    @pytest.mark.parametrize(
        "values",
        [
            [-math.inf, -(2**70), -1.5, -1, 0, 0.5, 1, Decimal("1.25"), 2**70, math.inf],
            ["", "a", "a\0", "a\0b", "ab", "b", "ä", "\U0001f600"],
            [b"", b"\0", b"\0\0", b"\0\1", b"\1", b"\xff"],
            [None, False, True, 5, "text", b"bytes"],
            [datetime(1900, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)],
        ],
    )
    def test_the_order_of_values(self, store, ns, values):
        store.configure("ns", index=["v"])
        ns.set_many({f"k{n}": {"v": value} for n, value in enumerate(reversed(values))})

        assert [e.value["v"] for e in ns.find(v=Range())] == values
        for value in values:
            assert [e.value["v"] for e in ns.find(v=value)] == [value]

    def test_nan_has_no_place(self, store, ns):
        store.configure("ns", index=["v"])

        with pytest.raises(InvalidValue, match="NaN"):
            ns["a"] = {"v": math.nan}

        assert "a" not in ns
        ns["a"] = {"v": [1, 2]}
        assert list(ns.find(v=Range())) == []

    def test_long_texts_are_told_apart(self, store, ns):
        store.configure("ns", index=["v"])
        ns.set_many({"a": {"v": "x" * 300 + "a"}, "b": {"v": "x" * 300 + "b"}})

        assert [e.key for e in ns.find(v="x" * 300 + "b")] == ["b"]

    @pytest.mark.parametrize("index", ["stage", [""], ["a..b"], [1], ["p" * 300]])
    def test_what_is_no_path_is_refused(self, store, index):
        with pytest.raises(InvalidValue):
            store.configure("ns", index=index)


class TestQuotas:
    def test_keys(self, store, ns, clock):
        store.configure("ns", keys_max=2)
        ns["a"] = 1
        ns.set("b", 1, ttl=5)

        with pytest.raises(QuotaExceeded, match="2 keys") as caught:
            ns["c"] = 1
        assert isinstance(caught.value, Full)
        assert "'ns'" in str(caught.value)
        ns["a"] = 2
        with pytest.raises(Full):
            ns.set_many({"c": 1, "d": 1})
        assert dict(ns) == {"a": 2, "b": 1}
        clock.advance(5)
        ns["c"] = 1
        assert dict(ns) == {"a": 2, "c": 1}

    def test_bytes(self, store, ns):
        store.configure("ns", bytes_max=1000)
        ns["a"] = b"x" * 900

        with pytest.raises(QuotaExceeded, match="1000 bytes"):
            ns["b"] = b"x" * 200
        with pytest.raises(QuotaExceeded):
            ns["a"] = LARGE
        ns["a"] = b"x" * 100
        ns["b"] = b"x" * 200
        assert ns.used().bytes < 1000

    def test_a_quota_below_what_is_there_only_lets_it_shrink(self, store, ns):
        ns.set_many({"a": 1, "b": 2, "c": 3})
        store.configure("ns", keys_max=1)

        ns["a"] = 4
        ns.delete("b")
        with pytest.raises(QuotaExceeded):
            ns["d"] = 1


@pytest.mark.parametrize(
    "options",
    [
        {"nonsense": 1},
        {"ttl": -1},
        {"ttl": "1h"},
        {"history": -1},
        {"history": True},
        {"history": 1.5},
        {"on_expire": "explode"},
        {"keys_max": -1},
        {"bytes_max": "1 GB"},
        {"sliding": 1},
        {"history_age": 0},
    ],
)
def test_settings_that_make_no_sense_change_nothing(store, options):
    store.configure("ns", ttl=60)
    before = store.revision()

    with pytest.raises(InvalidValue):
        store.configure("ns", **options)

    assert store.namespace("ns").settings().ttl == 60
    assert store.revision() == before


class TestSeries:
    def test_points_ranges_and_changes(self, ns, clock):
        followers = ns.series("followers")
        start = at(clock).replace(microsecond=0)
        for day in range(10):
            followers.append(100 + day * 10, start + timedelta(days=day))

        assert followers.latest() == (start + timedelta(days=9), 190)
        assert followers.change(timedelta(days=1)) == 10
        assert followers.change(timedelta(days=7)) == 70
        assert followers.change(timedelta(days=365)) == 90
        found = followers.range(start + timedelta(days=2), start + timedelta(days=4))
        assert [point.value for point in found] == [120, 130]
        assert followers.at(start + timedelta(days=2, hours=5)).value == 120
        assert followers.at(start - timedelta(days=1)) is None

    def test_it_is_bounded_by_count_and_by_age(self, ns, clock):
        counted = ns.series("a", max_count=3)
        aged = ns.series("b", max_age=100)
        start = at(clock)
        for second in range(5):
            counted.append(second, start + timedelta(seconds=second))
            aged.append(second, start + timedelta(seconds=second))
        clock.advance(102)

        assert [p.value for p in counted.range()] == [2, 3, 4]
        assert [p.value for p in aged.range()] == [3, 4]

    def test_an_empty_one_has_no_latest_and_no_change(self, ns):
        assert ns.series("x").latest() is None
        assert ns.series("x").change(60) is None

    def test_only_numbers(self, ns):
        for value in ("1", True, None):
            with pytest.raises(InvalidValue):
                ns.series("x").append(value)
        with pytest.raises(InvalidValue):
            ns.series("x", max_count=0)


class TestLocks:
    def test_one_holder_at_a_time_with_rising_tokens(self, store):
        first, second = store.lock("job", owner="a"), store.lock("job", owner="b", timeout=0)

        token = first.acquire()
        assert first.held()
        assert second.holder() == "a"
        with pytest.raises(Conflict, match="'a'"):
            second.acquire()
        assert first.release() is True
        assert second.acquire() > token
        assert second.release() is True
        assert second.release() is False
        assert second.holder() is None

    def test_who_waits_gets_it_when_it_is_free(self, store):
        held = store.lock("job")
        held.acquire()
        got = threading.Event()

        def wait():
            with store.lock("job", timeout=30):
                got.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.05)
        held.release()

        assert got.wait(20)
        thread.join(20)

    def test_a_lease_that_ran_out_is_lost(self, store, clock):
        late = store.lock("job", ttl=1000)
        late.acquire()
        clock.advance(1001)

        with store.lock("job", timeout=0) as other:
            assert other.held()
            assert not late.held()
            assert late.release() is False
            assert other.held()

    def test_the_lease_is_renewed_while_the_owner_lives(self, store, clock):
        with store.lock("job", ttl=0.3) as lock:
            for _ in range(3):
                clock.advance(0.2)
                wait_for(lambda: store.namespace(LOCKS).ttl("job") == pytest.approx(0.3))

            assert lock.held()

    def test_no_two_at_once(self, store):
        inside, most = [], []

        def work():
            for _ in range(5):
                with store.lock("job", timeout=60):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert len(most) == 20
        assert set(most) == {1}


class TestWatch:
    def test_a_prefix_of_one_namespace(self, store, ns):
        since = store.revision()
        ns.set_many({"a1": 1, "b1": 1})
        store.namespace("other")["a1"] = 2
        ns["a2"] = 2

        events = list(store.watch("ns", since, timeout=0, prefix="a"))

        assert [(e.name, e.value) for e in events] == [("a1", 1), ("a2", 2)]

    def test_previous_values_and_kinds(self, store, ns, clock):
        since = store.revision()
        ns["a"] = 1
        ns["a"] = 2
        ns.delete("a")
        ns.set("b", 1, ttl=1)
        clock.advance(1)
        ns["c"] = 1

        events = [(e.kind, e.name, e.value, e.previous) for e in store.watch("ns", since, 0)]

        assert events == [
            ("set", "a", 1, None),
            ("set", "a", 2, 1),
            ("delete", "a", None, 2),
            ("set", "b", 1, None),
            ("set", "c", 1, None),
            ("expire", "b", None, 1),
        ]

    def test_conditions_of_exists_are_told_apart(self, ns):
        ns["a"] = 1
        with pytest.raises(Exists):
            ns.set("a", 2, if_absent=True)
