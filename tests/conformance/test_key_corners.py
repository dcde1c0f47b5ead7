"""Where two features of keys meet: transactions and expiries, series and other keys, archives."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

import kvstate


@pytest.fixture
def ns(store):
    return store.namespace("ns")


def day(n):
    return datetime(2026, 1, n, tzinfo=UTC)


# Each body is applied to the namespace itself and in a transaction: the same is expected.
SAME = {
    "set_ttl_increment": lambda m: (m.set("a", 1, ttl=60), m.increment("a")),
    "set_ttl_append": lambda m: (m.set("a", [1], ttl=60), m.append("a", 2)),
    "set_ttl_update": lambda m: (m.set("a", 1, ttl=60), m.update("a", lambda v: v + 1)),
    "set_ttl_keep": lambda m: (m.set("a", 1, ttl=60), m.set("a", 2, keep_ttl=True)),
    "expire_increment": lambda m: (m.set("a", 1), m.expire("a", 60), m.increment("a")),
    "had_ttl_delete_increment": lambda m: (m.delete("had"), m.increment("had")),
    "had_ttl_set_increment": lambda m: (m.set("had", 5), m.increment("had")),
    "had_ttl_expire_increment": lambda m: (m.expire("had", 60), m.increment("had")),
}


@pytest.mark.parametrize("name", SAME)
def test_expiries_in_a_transaction_are_as_outside(store, name):
    plain, inside = store.namespace("plain"), store.namespace("inside")
    for space in (plain, inside):
        space.set("had", 1, ttl=10)
    SAME[name](plain)
    with store.transaction() as t:
        SAME[name](t.namespace("inside"))

    assert {k: inside.ttl(k) for k in inside} == {k: plain.ttl(k) for k in plain}


def test_an_expiry_in_a_transaction_leaves_revision_and_times(store, ns, clock):
    ns.set("a", 1, ttl=60)
    before = ns.entry("a")
    clock.advance(5)
    with store.transaction() as t:
        t.namespace("ns").expire("a", 60)
    after = ns.entry("a")
    assert (after.revision, after.updated_at) == (before.revision, before.updated_at)


def test_a_taken_name_is_exists_in_a_transaction(store, ns):
    ns["a"] = 1
    with pytest.raises(kvstate.Exists), store.transaction() as t:
        t.namespace("ns").set("a", 2, if_absent=True)


def test_a_taken_name_is_not_tried_again(store, ns):
    ns["a"], runs = 1, []

    def work(t):
        runs.append(1)
        t.namespace("ns").set("a", 2, if_absent=True)

    with pytest.raises(kvstate.Conflict):
        store.transact(work)
    assert len(runs) == 1


def test_a_transaction_takes_the_value_when_it_is_set(store, ns):
    mine = [1]
    with store.transaction() as t:
        t.namespace("ns")["a"] = mine
        mine.append(2)
    assert ns["a"] == [1]


def test_a_series_in_a_transaction(store, ns):
    with store.transaction() as t:
        assert t.namespace("ns").series("f").latest() is None


def test_series_beside_a_key_with_at(ns):
    ns["ada@example.com"] = "mail"
    ns.series("ada").append(1, day(1))
    assert ns.series("ada").latest().value == 1


def test_series_beside_a_series_with_at(ns):
    ns.series("ada").append(1, day(1))
    ns.series("ada@b").append(500, day(2))
    assert [p.value for p in ns.series("ada").range()] == [1]


def test_series_deletes_only_its_own(ns):
    ns["ada@1st"] = "precious"
    for n in (1, 2, 3):
        ns.series("ada", max_count=2).append(n, day(n))
    assert ns.get("ada@1st") == "precious"


def test_series_keeps_its_newest(ns):
    ns["ada@example.com"] = "mail"
    ns.series("ada", max_count=1).append(1, day(1))
    assert len(ns) == 2


def test_series_lowered_max_count(ns):
    for n in range(1, 11):
        ns.series("f").append(n, day(n))
    ns.series("f", max_count=5).append(11, day(11))
    assert len(ns) == 5


def test_series_change_of_decimal_and_float(ns):
    ns.series("f").append(Decimal(1), day(1))
    ns.series("f").append(1.5, day(2))
    assert ns.series("f").change(60) == 0.5


@pytest.mark.parametrize("how", ["set", "increment", "rename", "set_many"])
def test_archive_of_an_expired_key_that_is_written_again(store, ns, clock, how):
    store.configure("ns", on_expire="archive")
    ns.set("a", 41, ttl=1)
    ns["src"] = 7
    clock.advance(1)
    {
        "set": lambda: ns.set("a", 2),
        "increment": lambda: ns.increment("a"),
        "rename": lambda: ns.rename("src", "a"),
        "set_many": lambda: ns.set_many({"a": 2}),
    }[how]()
    store.lifecycle.run()
    assert [a.name for a in store.artifacts.list("ns")] == ["ns/expired/a"]


def test_rename_onto_an_expired_key_says_expire(store, ns, clock):
    ns.set("a", 1, ttl=1)
    since = ns.set("b", 2)
    clock.advance(1)
    ns.rename("b", "a")
    assert [e.kind for e in store.journal(since)] == ["expire", "rename"]
