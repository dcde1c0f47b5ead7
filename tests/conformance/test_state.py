"""Keys and namespaces, through every door."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest

from kvstate.errors import Conflict, Exists, InvalidName, InvalidValue, NotFound

VALUES = [
    None,
    True,
    0,
    -1,
    2**63,
    -(2**200),
    1.5,
    float("inf"),
    "",
    "grüße, 世界",
    b"",
    bytes(range(256)),
    [],
    [1, [2, [3]]],
    {},
    {"a": {"b": [1, None]}, "c": b"x"},
    {1: "int key", b"b": "bytes key"},
    datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001  (one without a zone)
    date(2026, 1, 2),
    UUID("12345678-1234-5678-1234-567812345678"),
    Decimal("1.50"),
    Decimal("-0"),
    "x" * 200_000,
]


@pytest.fixture
def prs(store):
    return store.namespace("polly:pr_number")


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_a_value_comes_back_as_it_was(prs, value):
    prs["key"] = value

    assert prs["key"] == value
    assert type(prs["key"]) is type(value)


def test_a_tuple_comes_back_as_a_list(prs):
    prs["key"] = (1, (2, 3))

    assert prs["key"] == [1, [2, 3]]


@pytest.mark.parametrize("value", [{1}, object(), 1j, {(1, 2): 3}, [{"a": {2}}], "\ud800"])
def test_what_is_not_of_the_model_is_refused_and_changes_nothing(store, prs, value):
    prs["key"] = "before"
    revision = store.revision()

    with pytest.raises(InvalidValue):
        prs["key"] = value

    assert prs["key"] == "before"
    assert store.revision() == revision


def test_a_value_that_holds_itself_is_refused(prs):
    value = []
    value.append(value)

    with pytest.raises(InvalidValue):
        prs["key"] = value


def test_an_absent_key_is_none_or_the_default_or_an_error(prs):
    assert prs.get("nope") is None
    assert prs.get("nope", 0) == 0
    assert prs.entry("nope") is None
    assert "nope" not in prs
    with pytest.raises(NotFound):
        prs["nope"]
    with pytest.raises(KeyError):
        prs["nope"]


def test_set_gives_rising_revisions_and_entry_shows_them(store, prs, clock):
    first = prs.set("a", 1)
    clock.advance(10)
    second = prs.set("a", 2)

    entry = prs.entry("a")
    assert first < second == entry.revision == store.revision()
    assert (entry.key, entry.value) == ("a", 2)
    assert entry.updated_at - entry.created_at == timedelta(seconds=10)
    assert entry.expires_at is None


def test_delete_says_whether_the_key_was_there(prs):
    prs["a"] = 1

    assert prs.delete("a") is True
    assert prs.delete("a") is False
    assert prs.get("a") is None
    with pytest.raises(NotFound):
        del prs["a"]


def test_a_namespace_is_a_mutable_mapping(prs):
    prs.update({"b": 2, "a": 1})
    prs.setdefault("c", 3)

    assert dict(prs) == {"a": 1, "b": 2, "c": 3}
    assert list(prs) == ["a", "b", "c"]
    assert len(prs) == 3
    assert prs.pop("b") == 2
    assert sorted(prs.items()) == [("a", 1), ("c", 3)]
    prs.clear()
    assert not prs


def test_a_key_is_gone_the_moment_its_ttl_has_passed(prs, clock):
    prs.set("9fceb02", 1287, ttl=60)
    clock.advance(59.999)
    assert prs.get("9fceb02") == 1287

    clock.advance(0.001)

    assert prs.get("9fceb02") is None
    assert prs.entry("9fceb02") is None
    assert "9fceb02" not in prs
    assert list(prs) == []
    assert prs.get_many(["9fceb02"]) == {}
    assert prs.delete("9fceb02") is False


def test_ttl_gives_the_seconds_left(prs, clock):
    prs.set("a", 1, ttl=timedelta(minutes=1))
    prs.set("b", 1)
    clock.advance(15)

    assert prs.ttl("a") == pytest.approx(45)
    assert prs.ttl("b") is None
    with pytest.raises(NotFound):
        prs.ttl("c")


def test_expires_at_takes_a_moment(prs, clock):
    at = datetime.fromtimestamp(clock.at_ns / 1e9, UTC) + timedelta(hours=1)
    prs.set("a", 1, expires_at=at)

    assert prs.entry("a").expires_at == at


def test_a_plain_set_takes_the_expiry_away_and_keep_ttl_keeps_it(prs):
    prs.set("a", 1, ttl=60)
    prs.set("a", 2, keep_ttl=True)
    assert prs.ttl("a") == pytest.approx(60)

    prs.set("a", 3)

    assert prs.ttl("a") is None


def test_expire_and_persist_change_only_the_expiry(prs, clock):
    prs.set("a", 1)

    assert prs.expire("a", 10) is True
    assert prs.ttl("a") == pytest.approx(10)
    assert prs.persist("a") is True
    assert prs.ttl("a") is None
    assert prs.expire("nope", 10) is False
    assert prs.persist("nope") is False
    assert prs["a"] == 1


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), -float("inf"), 1e12, True, "60"])
def test_a_ttl_that_makes_no_sense_is_refused(prs, ttl):
    with pytest.raises(InvalidValue):
        prs.set("a", 1, ttl=ttl)

    assert prs.get("a") is None


def test_a_key_that_expired_and_is_set_again_is_new(prs, clock):
    prs.set("a", 1, ttl=1)
    clock.advance(2)

    prs.set("a", 2, if_absent=True)

    assert prs["a"] == 2
    assert prs.entry("a").created_at == prs.entry("a").updated_at


def test_conditions_refuse_and_change_nothing(store, prs):
    revision = prs.set("a", 1)

    with pytest.raises(Exists):
        prs.set("a", 2, if_absent=True)
    with pytest.raises(NotFound):
        prs.set("b", 2, if_present=True)
    with pytest.raises(Conflict):
        prs.set("a", 2, if_revision=revision + 1)
    with pytest.raises(Conflict):
        prs.delete("a", if_revision=revision + 1)

    assert dict(prs) == {"a": 1}
    assert store.revision() == revision


def test_compare_and_set_on_the_revision_that_was_seen(prs):
    revision = prs.set("a", 1)

    prs.set("a", 2, if_revision=revision)
    prs.set("b", 1, if_revision=0)

    assert dict(prs) == {"a": 2, "b": 1}
    assert prs.delete("a", if_revision=prs.entry("a").revision) is True


def test_set_many_is_one_revision(store, prs):
    before = store.revision()

    revision = prs.set_many({f"k{number:04}": number for number in range(1000)}, ttl=60)

    assert revision == store.revision()
    assert revision - before == 1
    assert len(prs) == 1000
    assert prs.get_many(["k0007", "nope", "k0999"]) == {"k0007": 7, "k0999": 999}
    assert prs.ttl("k0500") == pytest.approx(60)


def test_scan_gives_entries_in_key_order_within_bounds(prs):
    prs.set_many({key: key.upper() for key in ["b", "a", "ab", "abc", "ac", "ä", "B"]})

    assert [e.key for e in prs.scan()] == ["B", "a", "ab", "abc", "ac", "b", "ä"]
    assert [e.key for e in prs.scan("a")] == ["a", "ab", "abc", "ac"]
    assert [e.key for e in prs.scan("a", reverse=True)] == ["ac", "abc", "ab", "a"]
    assert [e.key for e in prs.scan("a", start="ab")] == ["ab", "abc", "ac"]
    assert [e.key for e in prs.scan("a", start="abc", reverse=True)] == ["abc", "ab", "a"]
    assert [e.value for e in prs.scan("a", limit=2)] == ["A", "AB"]
    assert list(prs.scan("zz")) == []


def test_scan_goes_on_over_many_pages_while_keys_come_and_go(prs):
    prs.set_many({f"k{number:05}": number for number in range(3000)})

    seen = []
    for entry in prs.scan():
        seen.append(entry.key)
        if entry.value == 10:
            prs.delete("k02999")
            prs["k00000a"] = "before where the scan is"

    assert seen == [f"k{number:05}" for number in range(2999)]


def test_namespaces_are_apart_and_listed(store):
    store.namespace("a")["key"] = 1
    store.namespace("a:b")["key"] = 2
    store.namespace("b")["key"] = 3

    assert list(store.namespaces()) == ["a", "a:b", "b"]
    assert [store.namespace(name)["key"] for name in store.namespaces()] == [1, 2, 3]


def test_a_namespace_can_be_made_and_removed_while_it_is_empty(store):
    store.make_namespace("empty")
    store.make_namespace("empty")
    store.namespace("full")["key"] = 1

    assert list(store.namespaces()) == ["empty", "full"]
    assert store.remove_namespace("empty") is True
    assert store.remove_namespace("empty") is False
    with pytest.raises(Conflict):
        store.remove_namespace("full")


def test_a_namespace_made_anew_has_none_of_the_old_keys(store):
    held = store.namespace("ns")
    held["old"] = 1
    del held["old"]
    store.remove_namespace("ns")

    store.namespace("ns")["new"] = 2

    assert dict(held) == {"new": 2}
    assert held.get("new") == 2


def test_rename_takes_the_value_and_its_expiry_along(prs, clock):
    prs.set("old", 1, ttl=60)
    prs.set("taken", 2)

    prs.rename("old", "new")

    assert dict(prs) == {"new": 1, "taken": 2}
    assert prs.ttl("new") == pytest.approx(60)
    with pytest.raises(Exists):
        prs.rename("new", "taken")
    prs.rename("new", "taken", replace=True)
    assert dict(prs) == {"taken": 1}
    with pytest.raises(NotFound):
        prs.rename("new", "other")
    clock.advance(61)
    assert dict(prs) == {}


GOOD_KEYS = [
    "a",
    ".hidden",
    "...",
    ".",
    "..",
    "a/b",
    "%",
    "%2F",
    " ",
    "-rf",
    "世界",
    "CON",
    "a:b*?",
]


@pytest.mark.parametrize("key", GOOD_KEYS)
def test_any_text_is_a_key(prs, key):
    prs[key] = key

    assert prs[key] == key
    assert list(prs) == [key]


@pytest.mark.parametrize("key", ["", "a\nb", "\0", "a\x7f", "\ud800", "k" * 256, "%" * 86, 7, None])
def test_what_is_no_key_is_refused_by_every_call(prs, key):
    for call in (
        lambda: prs.set(key, 1),
        lambda: prs.get(key),
        lambda: prs.delete(key),
        lambda: prs.entry(key),
        lambda: prs.set_many({key: 1}),
        lambda: prs.expire(key, 1),
    ):
        with pytest.raises(InvalidName):
            call()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "a*", "n" * 256, "a\n", "\ud800", 7]
)
def test_what_is_no_namespace_is_refused(store, name):
    with pytest.raises(InvalidName):
        store.namespace(name).set("key", 1)

    assert list(store.namespaces()) == []
