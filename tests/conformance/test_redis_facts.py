"""Each row of docs/redis.md, through every door."""

from __future__ import annotations

import math
import re
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from kvstate.errors import Conflict, Exists, InvalidValue, NotFound

PAGE = Path(__file__).parents[2] / "docs/redis.md"


@pytest.fixture
def ns(store):
    return store.namespace("redis")


def test_the_table_and_the_tests_name_the_same_facts():
    rows = re.findall(r"^\| ([a-z-]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    facts = {name.removeprefix("test_row_") for name in vars(sys.modules[__name__])}

    assert sorted(row.replace("-", "_") for row in rows if row != "row") == sorted(
        name for name in facts if f"test_row_{name}" in vars(sys.modules[__name__])
    )
    assert len(rows) > 20


def test_row_expire(ns):
    ns["a"] = 1

    assert ns.expire("a", 60) is True
    assert ns.ttl("a") == 60
    assert ns.expire("b", 60) is False


def test_row_expire_nx(ns):
    ns["a"] = 1

    assert ns.expire("a", 60, only_if="absent") is True
    assert ns.expire("a", 90, only_if="absent") is False
    assert ns.ttl("a") == 60


def test_row_expire_xx(ns):
    ns["a"] = 1

    assert ns.expire("a", 60, only_if="present") is False
    ns.expire("a", 60)
    assert ns.expire("a", 90, only_if="present") is True
    assert ns.ttl("a") == 90


def test_row_expire_gt(ns):
    ns.set("a", 1, ttl=60)

    assert ns.expire("a", 60, only_if="longer") is False
    assert ns.expire("a", 90, only_if="longer") is True
    assert ns.ttl("a") == 90


def test_row_expire_lt(ns):
    ns.set("a", 1, ttl=60)

    assert ns.expire("a", 60, only_if="shorter") is False
    assert ns.expire("a", 30, only_if="shorter") is True
    assert ns.ttl("a") == 30


def test_row_expire_gt_persistent(ns):
    ns["a"] = 1

    assert ns.expire("a", 10**6, only_if="longer") is False
    assert ns.ttl("a") is None
    assert ns.expire("a", 10**6, only_if="shorter") is True
    assert ns.expire("a", math.inf, only_if="longer") is True
    assert ns.ttl("a") is None


@pytest.mark.parametrize("ttl", [0, -1])
def test_row_expire_not_positive(ns, ttl):
    ns["a"] = 1

    with pytest.raises(InvalidValue):
        ns.expire("a", ttl)

    assert ns["a"] == 1


def test_row_expireat_past(ns, clock):
    ns["a"] = 1

    assert ns.expire("a", expires_at=clock.at_ns / 1e9 - 60) is True

    assert ns.get("a") is None
    assert len(ns) == 0


def test_row_expire_keeps_value(ns, clock):
    ns["a"] = 1
    before = ns.entry("a")
    clock.advance(5)

    ns.expire("a", 60)

    after = ns.entry("a")
    assert (after.value, after.revision, after.updated_at) == (
        1,
        before.revision,
        before.updated_at,
    )


def test_row_ttl(ns, clock):
    ns["persistent"] = 1
    ns.set("a", 1, ttl=60)
    clock.advance(0.25)

    assert ns.ttl("a") == 59.75
    assert ns.ttl("persistent") is None
    with pytest.raises(NotFound):
        ns.ttl("nope")


def test_row_expiretime(ns, clock):
    at = datetime.fromtimestamp(clock.at_ns / 1e9, UTC) + timedelta(seconds=60)
    ns.set("a", 1, ttl=60)

    assert ns.entry("a").expires_at == at


def test_row_persist(ns):
    ns.set("a", 1, ttl=60)

    assert ns.persist("a") is True
    assert ns.ttl("a") is None
    assert ns.persist("a") is True
    assert ns.persist("nope") is False


def test_row_set_clears_ttl(store, ns):
    ns.set("a", 1, ttl=60)
    ns["a"] = 2
    assert ns.ttl("a") is None

    store.configure("redis", ttl=30)
    ns["a"] = 3
    assert ns.ttl("a") == 30


def test_row_set_keepttl(ns):
    ns.set("a", 1, ttl=60)

    ns.set("a", 2, keep_ttl=True)

    assert (ns["a"], ns.ttl("a")) == (2, 60)


def test_row_set_nx(ns):
    ns.set("a", 1, if_absent=True)

    with pytest.raises(Exists):
        ns.set("a", 2, if_absent=True)

    assert ns["a"] == 1


def test_row_set_xx(ns):
    with pytest.raises(NotFound):
        ns.set("a", 1, if_present=True)
    assert "a" not in ns

    ns["a"] = 1
    ns.set("a", 2, if_present=True)
    assert ns["a"] == 2


def test_row_set_ex_px(ns, clock):
    ns.set("ex", 1, ttl=60)
    ns.set("px", 1, ttl=0.5)
    ns.set("exat", 1, expires_at=clock.at_ns / 1e9 + 90)

    assert [ns.ttl(key) for key in ("ex", "px", "exat")] == [60, 0.5, 90]


def test_row_set_ifeq(ns):
    ns["a"] = "old"
    seen = ns.entry("a")
    assert seen.value == "old"
    ns.set("a", "new", if_revision=seen.revision)

    ns["a"] = "old"
    with pytest.raises(Conflict):
        ns.set("a", "newer", if_revision=seen.revision)

    assert ns["a"] == "old"


def test_row_set_get(store, ns):
    ns["a"] = 1

    def swap(t):
        old = t.namespace("redis").get("a")
        t.namespace("redis")["a"] = 2
        return old

    assert store.transact(swap) == 1
    assert ns["a"] == 2


def test_row_getex(store, ns):
    ns["a"] = 1

    with store.transaction() as t:
        value = t.namespace("redis")["a"]
        t.namespace("redis").expire("a", 60)

    assert (value, ns["a"], ns.ttl("a")) == (1, 1, 60)
    assert ns.get("a") == 1
    assert ns.ttl("a") == 60


def test_row_getex_persist(ns):
    ns.set("a", 1, ttl=60)

    assert ns.get("a") == 1
    ns.persist("a")

    assert ns.ttl("a") is None


def test_row_getdel(ns):
    ns["a"] = 1

    assert ns.pop("a", None) == 1
    assert ns.pop("a", None) is None


def test_row_incr(ns):
    assert ns.increment("a") == 1
    ns.expire("a", 60)
    assert ns.increment("a", 5) == 6
    assert ns.ttl("a") == 60


def test_row_incr_type(ns):
    ns["a"] = "text"

    with pytest.raises(InvalidValue):
        ns.increment("a")

    assert ns["a"] == "text"


def test_row_rename(ns):
    ns.set("a", 1, ttl=60)
    ns.set("b", 2, ttl=90)

    with pytest.raises(Exists):
        ns.rename("a", "b")
    ns.rename("a", "b", replace=True)

    assert dict(ns) == {"b": 1}
    assert ns.ttl("b") == 60


def test_row_mset(store, ns):
    ns.set("a", 1, ttl=60)
    before = store.revision()

    ns.set_many({"a": 2, "b": 3})

    assert store.revision() == before + 1
    assert (ns.ttl("a"), dict(ns)) == (None, {"a": 2, "b": 3})


def test_row_expired_invisible(ns, clock):
    ns.set("a", 1, ttl=60)
    clock.advance(60)

    assert ns.get("a") is None
    assert ns.entry("a") is None
    assert ns.get_many(["a"]) == {}
    assert list(ns.scan()) == []
    assert len(ns) == 0
    assert ns.delete("a") is False
    assert ns.expire("a", 60) is False
    assert ns.increment("a") == 1


def test_row_keyspace_events(store, ns, clock):
    since = ns.set("a", "last", ttl=60)
    clock.advance(60)
    store.lifecycle.run()

    events = list(store.watch("redis", since, timeout=0))

    assert [(e.kind, e.name, e.previous) for e in events] == [("expire", "a", "last")]


@pytest.mark.parametrize("ttl", [0, -1])
def test_row_expire_not_positive_missing(ns, ttl):
    with pytest.raises(InvalidValue):
        ns.expire("a", ttl)


def test_row_expireat_past_event(store, ns, clock):
    since = ns.set("a", "last")

    ns.expire("a", expires_at=clock.at_ns / 1e9 - 60)
    store.lifecycle.run()

    events = [(event.kind, event.name) for event in store.journal(since)]
    assert events == [("ttl", "a"), ("expire", "a")]
    assert list(store.journal(since))[-1].previous == "last"


def test_row_expireat_past_gt(ns, clock):
    past = clock.at_ns / 1e9 - 60
    ns["persistent"] = 1
    ns.set("a", 1, ttl=60)

    assert ns.expire("persistent", expires_at=past, only_if="longer") is False
    assert ns.expire("a", expires_at=past, only_if="longer") is False
    assert ns.get_many(["persistent", "a"]) == {"persistent": 1, "a": 1}
    assert ns.expire("persistent", expires_at=past, only_if="shorter") is True
    assert ns.expire("a", expires_at=past, only_if="shorter") is True
    assert ns.get_many(["persistent", "a"]) == {}


@pytest.mark.parametrize("moment", [0, -1])
def test_row_expireat_zero(ns, moment):
    ns["a"] = 1

    with pytest.raises(InvalidValue):
        ns.expire("a", expires_at=moment)

    assert (ns["a"], ns.ttl("a")) == (1, None)


def test_row_expiretime_none(ns):
    ns["a"] = 1

    assert ns.entry("a").expires_at is None
    assert ns.entry("nope") is None


def test_row_set_keepttl_missing(store, ns):
    ns.set("a", 1, keep_ttl=True)
    assert ns.ttl("a") is None

    store.configure("redis", ttl=30)
    ns.set("b", 1, keep_ttl=True)
    assert ns.ttl("b") == 30


@pytest.mark.parametrize("ttl", [0, -1])
def test_row_set_ex_zero(ns, ttl):
    with pytest.raises(InvalidValue):
        ns.set("a", 1, ttl=ttl)

    assert "a" not in ns


def test_row_set_ifeq_value(store, ns):
    ns["a"] = "old"

    def if_equal(key, expected, value):
        with store.transaction() as t:
            mine = t.namespace("redis")
            equal = mine.get(key) == expected
            if equal:
                mine[key] = value
        return equal

    assert if_equal("a", "old", "new") is True
    assert if_equal("a", "old", "newer") is False
    assert if_equal("nope", "old", "new") is False
    assert dict(ns) == {"a": "new"}


def test_row_getdel_missing(ns):
    assert ns.pop("a", None) is None
    with pytest.raises(NotFound):
        ns.pop("a")


def test_row_incr_numeric_text(ns):
    ns["a"] = "10"

    with pytest.raises(InvalidValue):
        ns.increment("a")

    assert ns["a"] == "10"


def test_row_incr_float(ns):
    ns["a"] = 1.5
    ns["b"] = Decimal("0.1")

    assert ns.increment("a") == 2.5
    assert ns.increment("b", Decimal("0.2")) == Decimal("0.3")


def test_row_incr_overflow(ns):
    ns["a"] = 2**63 - 1

    assert ns.increment("a") == 2**63
    assert ns["a"] == 2**63


def test_row_rename_persistent(ns):
    ns["a"] = 1
    ns.set("b", 2, ttl=90)

    ns.rename("a", "b", replace=True)

    assert (dict(ns), ns.ttl("b")) == ({"b": 1}, None)


def test_row_rename_missing(ns):
    ns["b"] = 2

    with pytest.raises(NotFound):
        ns.rename("a", "b", replace=True)

    assert dict(ns) == {"b": 2}


def test_row_renamenx(ns):
    ns.set_many({"a": 1, "b": 2})

    with pytest.raises(Exists):
        ns.rename("a", "b")

    assert dict(ns) == {"a": 1, "b": 2}
