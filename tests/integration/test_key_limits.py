"""Keys at their limits, on the real clock and with real sizes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

import kvstate
from kvstated.server import serving


@pytest.fixture
def store(tmp_path):
    with kvstate.open(tmp_path / "store") as store:
        yield store
        assert store.check(verify=True).problems == ()


def test_an_open_watch_lets_keys_expire_on_time_without_a_daemon(store):
    since = store.revision()
    store.namespace("ns").set("a", "last", ttl=0.3)

    kinds = []
    for event in store.watch("ns", since, timeout=20):
        kinds.append((event.kind, event.previous))
        if event.kind == "expire":
            break

    assert kinds == [("set", None), ("expire", "last")]


def test_a_value_of_100_mb_is_kept_and_read_back(store):
    value = bytes(100_000_000)
    ns = store.namespace("ns")

    ns["large"] = value

    assert ns["large"] == value
    assert ns.used().bytes > 100_000_000
    del ns["large"]


def test_a_value_larger_than_a_frame_is_refused_by_the_client_and_nothing_changes(store, tmp_path):
    with serving(store, tmp_path / "socket"), kvstate.connect(tmp_path / "socket") as client:
        ns = client.namespace("ns")
        with pytest.raises(kvstate.InvalidValue, match="frame_bytes_max"):
            ns["large"] = bytes(100_000_000)
        assert "large" not in ns
        ns["small"] = 1
        assert dict(ns) == {"small": 1}


@pytest.mark.parametrize(
    "expiry",
    [
        {"ttl": -5},
        {"ttl": 10**12},
        {"ttl": timedelta(days=3_000_000)},
        {"expires_at": datetime(9999, 12, 31, tzinfo=UTC)},
        {"expires_at": datetime(2030, 1, 1)},  # noqa: DTZ001  (that is what is refused)
        {"expires_at": 10**15},
        {"expires_at": -1},
        {"ttl": 5, "expires_at": 5e9},
    ],
)
def test_an_expiry_that_makes_no_sense_is_refused(store, expiry):
    ns = store.namespace("ns")
    ns["a"] = 1
    before = store.revision()

    with pytest.raises(kvstate.InvalidValue):
        ns.set("a", 2, **expiry)
    with pytest.raises(kvstate.InvalidValue):
        ns.expire("a", **expiry)

    assert ns["a"] == 1
    assert store.revision() == before


def test_a_watcher_that_is_too_slow_is_told(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/kvstate.toml").write_text('[journal]\nbytes_max = "64KiB"\n')
    with kvstate.open(tmp_path / "store") as store:
        ns = store.namespace("ns")
        events = store.watch("ns", ns.set("a", 0))
        ns.set("a", 1)
        assert next(events).value == 1
        for n in range(1500):
            ns.set("a", "x" * 300 + str(n))

        with pytest.raises(kvstate.Compacted) as caught:
            for _ in range(3000):
                next(events)

        assert caught.value.oldest > 100
        assert store.journal(caught.value.oldest, limit=1)
