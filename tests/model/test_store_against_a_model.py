"""Random operations against plain dictionaries, with reopening and clock jumps in between."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvstate.errors import Conflict, Exists, InvalidName, InvalidValue, NotFound
from kvstate.settings import StoreSettings
from kvstate.store import open_store
from tests.harness import ManualClock

KEYS = st.sampled_from(["a", "ab", "b", "%", "/", "ä"])
VALUES = st.one_of(st.integers(), st.text(max_size=5), st.just("x" * 3000))
CONTENTS = st.sampled_from([b"", b"small", b"s" * 999, b"L" * 1500, b"M" * 70_000, b"N" * 200_000])
TIERS = ("hot", "warm", "cold")
FOLDERS = ["t/w", "t/w/d", "t/v", "u/w"]
NAMES = st.builds("{}/{}".format, st.sampled_from(FOLDERS), st.sampled_from(["a", "b", "d"]))
AGES = {"hot": 7, "warm": 30, "cold": 90}


class StoreMachine(RuleBasedStateMachine):
    """A store of which a dictionary knows what has to be in it."""

    @initialize(engine=st.sampled_from(["lmdb", "memory"]))
    def make(self, engine):
        self.folder = Path(tempfile.mkdtemp(prefix="kvstate-model-"))
        self.clock = ManualClock()
        self.engine = engine
        self.keys = {}
        self.files = {}
        self.store = self._open()
        self.revision = self.store.revision()

    def _open(self):
        limits = StoreSettings(inline_bytes_max=1024)
        return open_store(
            self.folder / "store", clock=self.clock, settings=limits, engine=self.engine
        )

    def teardown(self):
        if hasattr(self, "store"):
            problems = self.store.check(verify=True).problems
            self.store.close()
            shutil.rmtree(self.folder)
            assert problems == ()

    @precondition(lambda self: self.engine == "lmdb")
    @rule()
    def reopen(self):
        self.store.close()
        self.store = self._open()

    @rule(seconds=st.sampled_from([1, 5, 86400, 8 * 86400]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    def _live(self):
        now = self.clock.at_ns
        return {k: v for k, (v, at) in self.keys.items() if at is None or at > now}

    # Keys

    @rule(key=KEYS, value=VALUES, ttl=st.sampled_from([None, None, 3, 10]))
    def set_key(self, key, value, ttl):
        self.store.namespace("ns").set(key, value, ttl=ttl)
        self.keys[key] = value, None if ttl is None else self.clock.at_ns + ttl * 10**9

    @rule(key=KEYS, value=VALUES)
    def set_if_absent(self, key, value):
        there = key in self._live()
        try:
            self.store.namespace("ns").set(key, value, if_absent=True)
        except Exists:
            assert there
        else:
            assert not there
            self.keys[key] = value, None

    @rule(key=KEYS)
    def delete_key(self, key):
        there = key in self._live()
        assert self.store.namespace("ns").delete(key) == there
        if there:
            del self.keys[key]

    @rule(key=KEYS, ttl=st.sampled_from([1, 20]))
    def expire_key(self, key, ttl):
        there = key in self._live()
        assert self.store.namespace("ns").expire(key, ttl) == there
        if there:
            self.keys[key] = self.keys[key][0], self.clock.at_ns + ttl * 10**9

    @rule(old=KEYS, new=KEYS)
    def rename_key(self, old, new):
        there = old in self._live()
        try:
            self.store.namespace("ns").rename(old, new, replace=True)
        except NotFound:
            assert not there
        else:
            assert there
            self.keys[new] = self.keys[old]
            if old != new:
                del self.keys[old]

    @rule(pairs=st.dictionaries(KEYS, st.integers(), min_size=1))
    def set_many(self, pairs):
        self.store.namespace("ns").set_many(pairs)
        self.keys.update({key: (value, None) for key, value in pairs.items()})

    # Artifacts

    def _is_folder(self, name):
        return any(other.startswith(name + "/") for other in self.files)

    def _below_a_file(self, name):
        parts = name.split("/")
        return any("/".join(parts[:n]) in self.files for n in range(1, len(parts)))

    @rule(name=NAMES, content=CONTENTS, tier=st.sampled_from(TIERS))
    def put(self, name, content, tier):
        possible = not self._is_folder(name) and not self._below_a_file(name)
        try:
            self.store.artifacts.put(name, content, tier=tier)
        except Conflict:
            assert not possible
        else:
            assert possible
            self.files[name] = [content, tier, self.clock.at_ns]

    @rule(name=NAMES)
    def delete(self, name):
        assert self.store.artifacts.delete(name) == (name in self.files)
        self.files.pop(name, None)

    @rule(name=NAMES, tier=st.sampled_from(TIERS))
    def move(self, name, tier):
        if name not in self.files:
            return
        self.store.artifacts.move(name, tier)
        if TIERS.index(tier) < TIERS.index(self.files[name][1]):
            self.files[name][2] = self.clock.at_ns
        self.files[name][1] = tier

    @rule(old=NAMES, new=NAMES)
    def rename(self, old, new):
        possible = (
            old in self.files
            and not self._is_folder(new)
            and not self._below_a_file(new)
            and not new.startswith(old + "/")
        )
        if self._is_folder(old):
            return
        try:
            self.store.artifacts.rename(old, new, replace=True)
        except (NotFound, Conflict, InvalidValue):
            assert not possible
        else:
            assert possible
            self.files[new] = self.files.pop(old)

    @rule(old=st.sampled_from(FOLDERS), new=st.sampled_from(["t/new", "v/w", "t/w/d/e"]))
    def rename_folder(self, old, new):
        possible = (
            self._is_folder(old)
            and not self._is_folder(new)
            and new not in self.files
            and not self._below_a_file(new)
            and not new.startswith(old + "/")
        )
        if old in self.files or new in self.files:
            return
        try:
            self.store.artifacts.rename(old, new)
        except (NotFound, Conflict, InvalidValue, InvalidName):
            assert not possible
        else:
            assert possible
            moved = {n: f for n, f in self.files.items() if n.startswith(old + "/")}
            for name, file in moved.items():
                del self.files[name]
                self.files[new + name[len(old) :]] = file

    @rule()
    def run_lifecycle(self):
        dead = len(self.keys) - len(self._live())
        outcome = self.store.lifecycle.run()
        # A dead key that was set anew, renamed over or listed may have gone before.
        assert outcome.expired <= dead
        assert outcome.errors == 0
        self.keys = {k: self.keys[k] for k in self._live()}
        for name, file in list(self.files.items()):
            age_days = (self.clock.at_ns - file[2]) / 86400e9
            while file[1] is not None and age_days >= AGES[file[1]]:
                file[1] = {"hot": "warm", "warm": "cold", "cold": None}[file[1]]
            if file[1] is None:
                del self.files[name]

    # What always holds

    @invariant()
    def the_store_holds_what_the_model_holds(self):
        if not hasattr(self, "store"):
            return
        assert dict(self.store.namespace("ns").items()) == self._live()
        found = {a.name: (a.tier, a.size) for a in self.store.artifacts.list()}
        assert found == {n: (f[1], len(f[0])) for n, f in self.files.items()}
        for tier in TIERS:
            listed = [a.name for a in self.store.artifacts.list(tier=tier)]
            assert sorted(listed) == sorted(n for n, f in self.files.items() if f[1] == tier)
        for name, file in self.files.items():
            assert self.store.artifacts.get(name) == file[0]

    @invariant()
    def revisions_never_fall(self):
        if hasattr(self, "store"):
            assert self.store.revision() >= self.revision
            self.revision = self.store.revision()


StoreMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
test_random_operations_agree_with_a_model = StoreMachine.TestCase
