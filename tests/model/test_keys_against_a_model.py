"""Random operations on keys against plain Python, through three doors, with clocks that jump.

The model is a dictionary of live keys, and a list of what the namespace was after each commit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import kvstate
from kvstate.codec import encode
from kvstate.errors import Compacted, Conflict, Exists, InvalidValue, NotFound, QuotaExceeded
from kvstate.keys import ONLY_IF
from kvstate.settings import StoreSettings
from kvstate.store import open_store
from kvstated.server import serving
from tests.harness import ManualClock
from tests.integration.daemons import ROOTS

SECOND = 10**9
KEYS = st.sampled_from(["a", "ab", "abc", "b", "%", "ä"])
VALUES = st.one_of(
    st.integers(-5, 5),
    st.text(max_size=4),
    st.just("x" * 3000),
    st.lists(st.integers(0, 3), max_size=3),
    st.builds(lambda stage: {"stage": stage}, st.sampled_from(["new", "done", 3])),
)
TTLS = st.sampled_from([None, None, 3, 10])
PREFIXES = st.sampled_from(["", "a", "ab", "zz"])


class Kept(NamedTuple):
    """What the model knows of a key."""

    value: Any
    expires_ns: int | None
    revision: int


class KeysMachine(RuleBasedStateMachine):
    """One namespace of which a dictionary knows what has to be in it."""

    @initialize(door=st.sampled_from(["lmdb", "memory", "client"]))
    def make(self, door):
        self.folder = Path(tempfile.mkdtemp(prefix="kvstate-keys-"))
        self.clock = ManualClock()
        self.door = door
        self.keys: dict[str, Kept] = {}
        self.ttl = self.keys_max = None
        self.history = 0
        self.indexed = False
        self.past: dict[int, dict[str, Any]] = {}
        self._open()

    def _open(self):
        self.stack = ExitStack()
        self.store = self.real = self.stack.enter_context(
            open_store(
                self.folder / "store",
                clock=self.clock,
                settings=StoreSettings(inline_bytes_max=1024),
                engine="memory" if self.door == "memory" else "lmdb",
            )
        )
        if self.door == "client":
            self.stack.enter_context(serving(self.real, self.folder / "socket"))
            self.store = self.stack.enter_context(kvstate.connect(self.folder / "socket"))
        self.ns = self.store.namespace("ns")

    def teardown(self):
        if hasattr(self, "store"):
            problems = self.real.check(verify=True).problems
            self.stack.close()
            shutil.rmtree(self.folder)
            assert problems == ()

    @precondition(lambda self: self.door != "memory")
    @rule()
    def reopen(self):
        self.stack.close()
        self._open()

    @rule(seconds=st.sampled_from([1, 5, 86400, -2, -3600]))
    def the_clock_moves(self, seconds):
        if seconds < 0 and self.history:
            return  # what was by a time that came twice is nobody's to say
        if seconds < 0:
            self.sweep()  # what has expired may be gone for good, or not: let it be gone
        self.clock.advance(seconds)

    # The model

    def live(self):
        now = self.clock.at_ns
        return {
            key: kept
            for key, kept in self.keys.items()
            if kept.expires_ns is None or kept.expires_ns > now
        }

    def _expiry(self, ttl):
        ttl = self.ttl if ttl is None else ttl
        return None if ttl is None else self.clock.at_ns + ttl * SECOND

    def _full(self, new):
        return self.keys_max is not None and new and len(self.live()) + new > self.keys_max

    def _committed(self):
        revision = self.store.revision()
        self.past[revision] = {key: kept.value for key, kept in self.live().items()}
        return revision

    def _put(self, key, value, expires_ns):
        self.keys[key] = Kept(value, expires_ns, self.store.revision())

    # Writing

    @rule(
        key=KEYS,
        value=VALUES,
        ttl=TTLS,
        condition=st.sampled_from(["", "", "", "absent", "present", "right", "wrong"]),
        keep=st.booleans(),
    )
    def set_key(self, key, value, ttl, condition, keep):
        there = self.live().get(key)
        options = {
            "absent": {"if_absent": True},
            "present": {"if_present": True},
            "right": {"if_revision": there.revision if there else 0},
            "wrong": {"if_revision": 10**9},
        }.get(condition, {})
        refused = {
            "absent": Exists if there else None,
            "present": None if there else NotFound,
            "wrong": Conflict,
        }.get(condition)
        if refused is None and self._full(0 if there else 1):
            refused = QuotaExceeded
        if refused is not None:
            with pytest.raises(refused):
                self.ns.set(key, value, ttl=ttl, keep_ttl=keep, **options)
            return
        revision = self.ns.set(key, value, ttl=ttl, keep_ttl=keep, **options)
        expires_ns = self._expiry(ttl)
        if keep and ttl is None and there is not None:
            expires_ns = there.expires_ns
        self._put(key, value, expires_ns)
        assert self._committed() == revision

    @rule(pairs=st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), ttl=TTLS)
    def set_many(self, pairs, ttl):
        if self._full(len(pairs.keys() - self.live().keys())):
            with pytest.raises(QuotaExceeded):
                self.ns.set_many(pairs, ttl=ttl)
            return
        self.ns.set_many(pairs, ttl=ttl)
        for key, value in pairs.items():
            self._put(key, value, self._expiry(ttl))
        self._committed()

    @rule(pairs=st.dictionaries(KEYS, VALUES, min_size=1, max_size=4))
    def upsert_many(self, pairs):
        live = self.live()
        if self._full(len(pairs.keys() - live.keys())):
            with pytest.raises(QuotaExceeded):
                self.ns.upsert_many(pairs)
            return
        before = self.store.revision()
        counts = self.ns.upsert_many(pairs)
        new = pairs.keys() - live.keys()
        changed = {k for k in pairs.keys() & live.keys() if live[k].value != pairs[k]}
        assert counts == (len(pairs), len(new), len(changed), len(pairs) - len(new) - len(changed))
        for key in new | changed:
            self._put(key, pairs[key], self._expiry(None))
        if new | changed:
            assert self._committed() == before + 1

    @rule(key=KEYS, by=st.sampled_from([1, -3, 0.5]))
    def increment(self, key, by):
        there = self.live().get(key)
        if there is not None and not isinstance(there.value, int | float):
            with pytest.raises(InvalidValue):
                self.ns.increment(key, by)
        elif self._full(0 if there else 1):
            with pytest.raises(QuotaExceeded):
                self.ns.increment(key, by)
        else:
            value = (there.value if there else 0) + by
            assert self.ns.increment(key, by) == value
            self._put(key, value, there.expires_ns if there else self._expiry(None))
            self._committed()

    @rule(key=KEYS, items=st.lists(st.integers(0, 9), max_size=3), limit=st.sampled_from([None, 2]))
    def append(self, key, items, limit):
        there = self.live().get(key)
        if there is not None and not isinstance(there.value, list):
            with pytest.raises(InvalidValue):
                self.ns.append(key, *items, limit=limit)
        elif self._full(0 if there else 1):
            with pytest.raises(QuotaExceeded):
                self.ns.append(key, *items, limit=limit)
        else:
            value = [*(there.value if there else []), *items]
            value = value if limit is None else value[max(0, len(value) - limit) :]
            assert self.ns.append(key, *items, limit=limit) == len(value)
            self._put(key, value, there.expires_ns if there else self._expiry(None))
            self._committed()

    @rule(key=KEYS, ttl=st.sampled_from([1, 20]), only_if=st.sampled_from([None, *ONLY_IF]))
    def expire(self, key, ttl, only_if):
        there = self.live().get(key)
        at = self.clock.at_ns + ttl * SECOND
        wanted = (
            there is not None
            and {
                None: True,
                "absent": there.expires_ns is None,
                "present": there.expires_ns is not None,
                "longer": there.expires_ns is not None and at > there.expires_ns,
                "shorter": there.expires_ns is None or at < there.expires_ns,
            }[only_if]
        )
        assert self.ns.expire(key, ttl, only_if=only_if) is wanted
        if wanted:
            self.keys[key] = there._replace(expires_ns=at)
            self._committed()

    @rule(key=KEYS)
    def persist_and_touch(self, key):
        there = self.live().get(key)
        assert self.ns.persist(key) is (there is not None)
        assert self.ns.touch(key) is (there is not None)
        if there:
            self.keys[key] = there._replace(expires_ns=self._expiry(None))
            self._committed()

    @rule(key=KEYS)
    def delete(self, key):
        there = key in self.live()
        assert self.ns.delete(key) is there
        if there:
            del self.keys[key]
            self._committed()

    @rule(prefix=PREFIXES, drop=st.booleans())
    def a_prefix(self, prefix, drop):
        there = [key for key in self.live() if key.startswith(prefix)]
        if drop:
            assert self.ns.delete_prefix(prefix) == len(there)
            for key in there:
                del self.keys[key]
        else:
            assert self.ns.expire_prefix(prefix, 7) == len(there)
            at = self.clock.at_ns + 7 * SECOND
            self.keys.update({key: self.keys[key]._replace(expires_ns=at) for key in there})
        self._committed()

    @rule(old=KEYS, new=KEYS)
    def rename(self, old, new):
        live = self.live()
        if old not in live:
            with pytest.raises(NotFound):
                self.ns.rename(old, new, replace=True)
            return
        self.ns.rename(old, new, replace=True)
        if old != new:
            self.keys[new] = live[old]._replace(revision=self.store.revision())
            del self.keys[old]
            self._committed()

    @rule(
        writes=st.dictionaries(KEYS, st.one_of(st.none(), VALUES), min_size=1, max_size=3),
        read=KEYS,
        between=st.booleans(),
    )
    def transaction(self, writes, read, between):
        live = self.live()
        added = sum(1 for k, v in writes.items() if v is not None and k not in live)
        if self.keys_max is not None:
            return
        t = self.store.transaction()
        mine = t.namespace("ns")
        assert mine.get(read) == (live[read].value if read in live else None)
        for key, value in writes.items():
            mine.delete(key) if value is None else mine.set(key, value)
        if between:
            self.ns.set(read, "somebody else")
            self._put(read, "somebody else", self._expiry(None))
            self._committed()
            if t.namespace("ns").writes:
                with pytest.raises(Conflict):
                    t.commit()
            return
        t.commit()
        for key, value in writes.items():
            if value is None:
                self.keys.pop(key, None)
            else:
                self._put(key, value, self._expiry(None))
        assert added >= 0
        self._committed()

    # Settings and sweeps

    @rule(
        ttl=st.sampled_from([None, 8]),
        history=st.integers(0, 4),
        indexed=st.booleans(),
        keys_max=st.sampled_from([None, None, 4]),
    )
    def configure(self, ttl, history, indexed, keys_max):
        self.store.configure(
            "ns",
            ttl=ttl,
            history=history,
            index=["stage"] if indexed else [],
            keys_max=keys_max,
        )
        self.ttl, self.keys_max, self.indexed = ttl, keys_max, indexed
        if bool(history) != bool(self.history):
            self.past.clear()
        self.history = history
        self._committed()

    @rule()
    def sweep(self):
        before = len(self.keys) - len(self.live())
        assert self.store.lifecycle.run().expired <= before
        self.keys = self.live()
        self._committed()
        used = self.ns.used()
        assert used.keys == len(self.keys)
        assert used.bytes == sum(
            len(key.encode()) + len(encode(kept.value)) for key, kept in self.keys.items()
        )

    # Looking

    @invariant()
    def the_same_is_there(self):
        if hasattr(self, "store"):
            live = {key: kept.value for key, kept in self.live().items()}
            assert dict(self.ns) == live
            assert len(self.ns) == len(live)

    @rule(key=KEYS)
    def look_at_a_key(self, key):
        kept, entry = self.live().get(key), self.ns.entry(key)
        if kept is None:
            assert entry is None
            return
        assert (entry.value, entry.revision) == (kept.value, kept.revision)
        assert entry.expires_at_ns == (kept.expires_ns or 0)

    @precondition(lambda self: self.indexed)
    @rule(stage=st.sampled_from(["new", "done", 3, "none"]))
    def find(self, stage):
        assert sorted(entry.key for entry in self.ns.find(stage=stage)) == sorted(
            key
            for key, kept in self.live().items()
            if isinstance(kept.value, dict) and kept.value["stage"] == stage
        )

    @precondition(lambda self: self.history and self.past)
    @rule(key=KEYS, data=st.data())
    def look_back(self, key, data):
        revision = data.draw(st.sampled_from(sorted(self.past)))
        expected = self.past[revision].get(key, "nothing")
        try:
            assert self.ns.get(key, "nothing", revision=revision) == expected
        except Compacted:
            later = [past.get(key, "nothing") for r, past in self.past.items() if r >= revision]
            assert len(later) > 1  # it was written over since

    @precondition(lambda self: self.history)
    @rule(key=KEYS)
    def the_history_ends_with_the_present(self, key):
        history = self.ns.history(key)
        kept = self.live().get(key)
        assert len(history) <= self.history
        assert [version.revision for version in history] == sorted(v.revision for v in history)
        if kept is not None:
            assert (history[-1].kind, history[-1].value) == ("set", kept.value)
        elif history:
            assert history[-1].kind in {"delete", "expire"}
        self.keys = {k: v for k, v in self.keys.items() if k != key or kept is not None}


TestKeys = KeysMachine.TestCase
# KVSTATE_EXPLORE=1 takes other steps in each run, and many more of them.
EXPLORE = os.environ.get("KVSTATE_EXPLORE") == "1"
TestKeys.settings = settings(
    max_examples=2000 if EXPLORE else 80,
    stateful_step_count=50,
    deadline=None,
    derandomize=not EXPLORE,
)

WRITER = """
import sys, kvstate
store = kvstate.open(sys.argv[1])
ns = store.namespace("ns")
n = 0
while True:
    ns.set(f"k{n % 7}", {"stage": n % 3, "n": n}, ttl=3600)
    print(n, flush=True)
    n += 1
"""


@pytest.mark.parametrize("acknowledged", [1, 30, 90, 150])
def test_a_writer_that_is_killed_leaves_all_that_it_was_told(tmp_path, acknowledged):
    with kvstate.open(tmp_path / "store") as store:
        store.configure("ns", history=3, index=["stage"], keys_max=7)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "store"],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(map(str, ROOTS)), "PATH": ""},
    )
    last = -1
    for line in writer.stdout:
        last = int(line)
        if last >= acknowledged:
            break
    writer.kill()
    last = max([last, *(int(line) for line in writer.stdout.read().split())])
    writer.stdout.close()
    writer.wait(30)

    with kvstate.open(tmp_path / "store") as store:
        assert store.check(verify=True).problems == ()
        ns = store.namespace("ns")
        newest = max(value["n"] for value in ns.values())
        assert last <= newest <= last + 1
        for n in range(max(0, newest - 6), newest + 1):
            assert ns[f"k{n % 7}"]["n"] == n
        for stage in range(3):
            found = {entry.key for entry in ns.find(stage=stage)}
            assert found == {key for key, value in ns.items() if value["stage"] == stage}
