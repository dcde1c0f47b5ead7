"""Loads for power cuts, some with a sync left out, and looks at what a cut left."""

from __future__ import annotations

import hashlib
import os
import random
import stat

import lmdb

from kvstate.errors import StateError
from kvstate.settings import StoreSettings
from kvstate.store import open_store
from tests.harness import START_NS, ManualClock

TIERS = ("hot", "warm", "cold")
SPACES = ("plain", "kept")
# Small enough for the journal to be trimmed on the way.
SETTINGS = StoreSettings(journal_bytes_max=1 << 16)


def _folder(mounted):
    return mounted / "disk0" / "store"


def _seen(data):
    return f"{len(data)} {hashlib.blake2b(data, digest_size=8).hexdigest()}"


def _seen_value(value):
    return _seen(value) if isinstance(value, bytes) else value


class Mixed:
    """A worker on a store; it remembers what it wrote, and tells what it did."""

    def __init__(self, mounted, tell, seed):
        self.folder = _folder(mounted)
        self.clock = ManualClock()
        self.rng = random.Random(seed)
        self.store = None
        self.contents = {}
        self._tell = tell

    def tell(self, effects, **options):
        self._tell(effects, facts=self.clock.at_ns, **options)

    def work(self, steps):
        self.open()
        for name in SPACES:
            self.store.make_namespace(name)
            self.tell({})
        self.store.configure("kept", history=3)
        self.tell({})
        kinds = {
            self.set: 6,
            self.set_large: 2,
            self.set_to_expire: 2,
            self.set_many: 3,
            self.delete: 3,
            self.put: 3,
            self.put_large: 6,
            self.put_twin: 2,
            self.write: 2,
            self.remove: 5,
            self.rename: 4,
            self.move: 5,
            self.age: 2,
            self.reopen: 1,
        }
        for step in self.rng.choices(list(kinds), list(kinds.values()), k=steps):
            step()
        self.store.close()

    def open(self):
        self.store = open_store(self.folder, clock=self.clock, settings=SETTINGS)
        self.tell({"store": "made"})

    def reopen(self):
        self.store.close()
        self.open()

    # Keys

    def _key(self):
        return self.rng.choice(SPACES), str(self.rng.randrange(12))

    def _set(self, value, **options):
        space, key = self._key()
        self.store.namespace(space).set(key, value, **options)
        self.tell({f"{space}:{key}": _seen_value(value)})

    def set(self):
        self._set(self.rng.choice([self.rng.randrange(10**9), self.rng.randbytes(3000)]))

    def set_large(self):
        self._set(self.rng.randbytes(100_000))

    def set_to_expire(self):
        self._set(self.rng.randrange(10**9), ttl=self.rng.choice([2, 4, 8]) * 86400)

    def set_many(self):
        space, _ = self._key()
        values = {str(n): self.rng.randrange(10**9) for n in self.rng.sample(range(12), 5)}
        self.store.namespace(space).set_many(values)
        self.tell({f"{space}:{key}": value for key, value in values.items()})

    def delete(self):
        space, key = self._key()
        self.store.namespace(space).delete(key)
        self.tell({f"{space}:{key}": None})

    # Artifacts

    def _name(self):
        return f"t/w/{self.rng.choice('ab')}/{self.rng.randrange(6)}"

    def _known(self):
        return self.rng.choice(sorted(self.contents)) if self.contents else None

    def _seen(self, name, tier):
        return f"{tier} {_seen(self.contents[name])}"

    def _put(self, content, name=None):
        name, tier = name or self._name(), self.rng.choice(TIERS)
        self.store.artifacts.put(name, content, tier=tier)
        self.contents[name] = content
        self.tell({name: self._seen(name, tier)})

    def put(self):
        self._put(self.rng.randbytes(self.rng.choice([0, 10, 5000, 60_000])))

    def put_large(self, name=None):
        self._put(self.rng.randbytes(200 * 1024), name)

    def put_twin(self):
        name = self._known()
        self._put(self.contents[name] if name else b"alone")

    def write(self):
        name, parts = self._name(), [self.rng.randbytes(50_000) for _ in range(3)]
        with self.store.artifacts.open(name, "w") as writer:
            for part in parts:
                writer.write(part)
        self.contents[name] = b"".join(parts)
        self.tell({name: self._seen(name, self.store.artifacts.stat(name).tier)})

    def remove(self, name=None):
        name = name or self._known() or self._name()
        self.store.artifacts.delete(name)
        self.contents.pop(name, None)
        self.tell({name: None})

    def rename(self):
        old, new = self._known(), f"t/w2/{self.rng.randrange(6)}"
        if old is None or old == new:
            return
        tier = self.store.artifacts.rename(old, new, replace=True).tier
        self.contents[new] = self.contents.pop(old)
        self.tell({old: None, new: self._seen(new, tier)})

    def move(self):
        name, tier = self._known(), self.rng.choice(TIERS)
        if name is None:
            return
        self.store.artifacts.move(name, tier)
        self.tell({name: self._seen(name, tier)})

    # Time

    def age(self):
        """Let days pass and do what is due: moves, purges, expired keys; many commits."""
        before = self._all()
        self.clock.advance(days=self.rng.choice([3, 6, 12]))
        outcome = self.store.lifecycle.run()
        assert outcome.errors == 0, outcome
        after = self._all()
        self.contents = {name: self.contents[name] for name in after if name in self.contents}
        gone = dict.fromkeys(before.keys() - after.keys())
        changed = {name: seen for name, seen in after.items() if before[name] != seen}
        self.tell({**gone, **changed}, whole=False)

    def _all(self):
        """Give what is there: names from the store, contents as they were written."""
        found = {a.name: self._seen(a.name, a.tier) for a in self.store.artifacts.list()}
        for space in SPACES:
            for key, value in self.store.namespace(space).items():
                found[f"{space}:{key}"] = _seen_value(value)
        return found


def mixed(mounted, tell, seed, steps):
    """Do so many steps at random."""
    Mixed(mounted, tell, seed).work(steps)


def _without_syncs_of(is_kind, mounted, tell, seed, steps):
    real = os.fsync

    def fsync(fd):
        if not is_kind(os.fstat(fd).st_mode):
            real(fd)

    os.fsync = fsync
    mixed(mounted, tell, seed, steps)


def mixed_without_syncs_of_files(*arguments):
    _without_syncs_of(stat.S_ISREG, *arguments)


def mixed_without_syncs_of_folders(*arguments):
    _without_syncs_of(stat.S_ISDIR, *arguments)


def mixed_without_syncs_of_records(*arguments):
    real = lmdb.open
    lmdb.open = lambda *path, **options: real(*path, **options, sync=False)
    mixed(*arguments)


def removals(mounted, tell, seed, rounds):
    """Remove an artifact that is a file, and open the store again, which forgets it.

    The next artifact is put before that: its syncs also make it durable that the first one's name
    in ``staging/`` went, by which the next opening would find it.
    """
    worker = Mixed(mounted, tell, seed)
    worker.open()
    worker.put_large("t/w/0")
    for number in range(rounds):
        worker.put_large(f"t/w/{number + 1}")
        worker.remove(f"t/w/{number}")
        worker.reopen()


def look(mounted, clock_ns):
    """Open what is there; give all that it has, and what is wrong with it. It must work on."""
    folder = _folder(mounted)
    found = {"store": "made"} if (folder / "records" / "data.mdb").exists() else {}
    clock = ManualClock(START_NS if clock_ns is None else clock_ns)
    problems = []
    try:
        with open_store(folder, clock=clock, settings=SETTINGS) as store:
            problems += [str(problem) for problem in store.check(verify=True).problems]
            problems += [f"left over: {path}" for path in folder.glob("tiers/*/staging/*")]
            for space in SPACES:
                for key, value in store.namespace(space).items():
                    found[f"{space}:{key}"] = _seen_value(value)
            for artifact in store.artifacts.list():
                content = store.artifacts.get(artifact.name)
                found[artifact.name] = f"{artifact.tier} {_seen(content)}"
            _work_on(store)
            problems += [f"later: {problem}" for problem in store.check(verify=True).problems]
    except StateError as error:
        problems.append(f"{type(error).__name__}: {error}")
    return found, problems


def _work_on(store):
    content = random.Random(0).randbytes(200_000)
    store.artifacts.put("later/on/large", content)
    store.artifacts.move("later/on/large", "cold")
    assert store.artifacts.get("later/on/large") == content
    store.namespace("later").set_many({str(number): number for number in range(100)})
    assert store.namespace("later")["99"] == 99


def files_synced_and_not(mounted, tell):
    """Write a file on each of two disks; only the first is synced."""
    for disk in ("disk0", "disk1"):
        with (mounted / disk / "file").open("wb") as file:
            file.write(b"content")
            file.flush()
            if disk == "disk0":
                os.fsync(file)
        tell({disk: "content"})


def look_at_files(mounted, _):
    files = [path for path in mounted.glob("*/file") if path.stat().st_size]
    return {path.parent.name: path.read_text() for path in files}, []
