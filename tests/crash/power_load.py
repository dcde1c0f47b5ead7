"""Loads for power cuts, some with a sync left out, and looks at what a cut left."""

from __future__ import annotations

import hashlib
import os
import random
import stat

import lmdb
from xxhash import xxh3_128

from kvstate.errors import StateError
from kvstate.settings import StoreSettings, TierSettings
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
        self.settings = SETTINGS
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
        self.store = open_store(self.folder, clock=self.clock, settings=self.settings)
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


def tiered_settings(mounted):
    """Give settings with the cold tier on a disk of its own, packed, and with a trash."""
    cold = TierSettings(path=str(mounted / "disk1" / "cold"), compression_level=1)
    return StoreSettings(
        journal_bytes_max=1 << 16,
        tiers=(TierSettings(), TierSettings(), cold),
        rules={"trash_days": 9},
    )


class Tiered(Mixed):
    """A worker on a store with tiers on two disks; it moves, purges, deletes and undeletes."""

    def __init__(self, mounted, tell, seed):
        super().__init__(mounted, tell, seed)
        self.settings = tiered_settings(mounted)
        self._by_digest = {}

    def work(self, steps):
        self.open()
        kinds = {
            self.put: 2,
            self.put_large: 6,
            self.put_many: 2,
            self.put_twin: 2,
            self.cool: 6,
            self.warm: 6,
            self.delete: 4,
            self.undelete: 3,
            self.empty_trash: 1,
            self.age: 5,
            self.reopen: 1,
        }
        for step in self.rng.choices(list(kinds), list(kinds.values()), k=steps):
            step()
        self.store.close()

    def _did(self, act, *, whole=True):
        """Tell what an act changed."""
        before = self._all()
        result = act()
        after = self._all()
        gone = dict.fromkeys(before.keys() - after.keys())
        changed = {name: seen for name, seen in after.items() if before.get(name) != seen}
        self.tell({**gone, **changed}, whole=whole)
        return result

    def _all(self):
        found = {
            each.name: f"{each.tier} {self._by_digest[each.digest]}"
            for each in self.store.artifacts.list()
        }
        return found | trash_of(self.store)

    def _any(self, **options):
        names = [each.name for each in self.store.artifacts.list(**options)]
        return self.rng.choice(names) if names else None

    def _content(self, size):
        content = self.rng.randbytes(size // 4) * 4
        digest = f"xxh3:{xxh3_128(content).hexdigest()}"
        self._by_digest[digest] = _seen(content)
        return content

    def _put(self, content, name=None):
        tier = self.rng.choice(TIERS)
        self._did(lambda: self.store.artifacts.put(name or self._name(), content, tier=tier))

    def put(self):
        self._put(self._content(self.rng.choice([0, 5000, 60_000])))

    def put_large(self, name=None):
        self._put(self._content(self.rng.choice([80_000, 400_000])), name)

    def put_many(self):
        items = {self._name(): self._content(size) for size in (90_000, 400, 70_000)}
        self._did(lambda: self.store.artifacts.put_many(items))

    def put_twin(self):
        name = self._any()
        if name:
            self._put(self.store.artifacts.get(name))

    def cool(self):
        """Move to a colder tier."""
        name = self._any(tier=self.rng.choice(["hot", "warm"]))
        if name:
            self._did(lambda: self.store.artifacts.move(name, "cold"))

    def warm(self):
        """Bring back to a hotter tier."""
        name = self._any(tier="cold")
        if name:
            self._did(lambda: self.store.artifacts.restore(name, self.rng.choice(["hot", "warm"])))

    def delete(self):
        name, trash = self._any(), self.rng.random() < 0.7
        if name:
            self._did(lambda: self.store.artifacts.delete(name, trash=trash))

    def undelete(self):
        there = {each.name for each in self.store.artifacts.list()}
        names = sorted({each.name for each in self.store.artifacts.trash()} - there)
        if names:
            self._did(lambda: self.store.artifacts.undelete(self.rng.choice(names)))

    def empty_trash(self):
        self._did(self.store.artifacts.empty_trash, whole=False)

    def age(self):
        """Let days pass and do what is due: moves, packing, purges, trash that is up."""
        self.clock.advance(days=self.rng.choice([4, 8, 15, 30]))
        outcome = self._did(self.store.lifecycle.run, whole=False)
        assert outcome.errors == 0, outcome


def trash_of(store):
    """Give how often each name is in the trash."""
    names = [f"trash:{each.name}" for each in store.artifacts.trash()]
    return {name: names.count(name) for name in names}


def tiered(mounted, tell, seed, steps):
    """Do so many steps at random, on two disks."""
    Tiered(mounted, tell, seed).work(steps)


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
    return _look(mounted, clock_ns, SETTINGS)


def look_tiered(mounted, clock_ns):
    return _look(mounted, clock_ns, tiered_settings(mounted))


def _look(mounted, clock_ns, settings):
    folder = _folder(mounted)
    found = {"store": "made"} if (folder / "records" / "data.mdb").exists() else {}
    clock = ManualClock(START_NS if clock_ns is None else clock_ns)
    problems = []
    try:
        with open_store(folder, clock=clock, settings=settings) as store:
            problems += [str(problem) for problem in store.check(verify=True).problems]
            problems += [f"left over: {path}" for path in _staged(mounted)]
            for space in SPACES:
                for key, value in store.namespace(space).items():
                    found[f"{space}:{key}"] = _seen_value(value)
            for artifact in store.artifacts.list():
                content = store.artifacts.get(artifact.name)
                found[artifact.name] = f"{artifact.tier} {_seen(content)}"
            found |= trash_of(store)
            _work_on(store)
            problems += [f"later: {problem}" for problem in store.check(verify=True).problems]
    except StateError as error:
        problems.append(f"{type(error).__name__}: {error}")
    return found, problems


def _staged(mounted):
    return [*_folder(mounted).glob("tiers/*/staging/*"), *mounted.glob("disk1/cold/staging/*")]


def _work_on(store):
    content = random.Random(0).randbytes(200_000)
    store.artifacts.put("later/on/large", content)
    store.artifacts.move("later/on/large", "cold")
    assert store.artifacts.get("later/on/large") == content
    store.namespace("later").set_many({str(number): number for number in range(100)})
    assert store.namespace("later")["99"] == 99
    assert store.lifecycle.run().errors == 0


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
