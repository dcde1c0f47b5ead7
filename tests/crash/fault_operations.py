"""Operations on a store that may be killed at any fault point, and the process that does it.

    python -m tests.crash.fault_operations record <folder>              what points each one meets
    python -m tests.crash.fault_operations kill <folder> <operation>    what is wrong after kills

Each try has a process of its own, forked before any store is open, and a copy of the store that the
operation was prepared in. ``kill`` gives, as JSON, the points that were met and a list of problems.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstate import faults
from kvstate.errors import Damaged
from kvstate.settings import StoreSettings, TierSettings
from kvstate.store import open_store
from tests.harness import START_NS, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = random.Random(1).randbytes(200_000)
OTHER = random.Random(2).randbytes(150_000)
THIRD = random.Random(3).randbytes(100_000)
LONG = random.Random(4).randbytes(600_000)  # several frames
# The first move to a tier signs its folder; the warm one is never used before.
SETTINGS = StoreSettings(
    move_threads=1,
    rules={"trash_days": 5},
    tiers=(
        TierSettings(free_bytes_min=0),
        TierSettings(free_bytes_min=0),
        TierSettings(free_bytes_min=0, compression_level=1),
    ),
)


class Operation(NamedTuple):
    """What to do to which store; ``days`` pass between the two."""

    prepare: Callable[[Any], None]
    act: Callable[[Any], Any]
    days: float = 0
    whole: bool = True
    """Whether it is one commit: then all of it shows, or nothing."""
    opens: bool = False
    """Whether the opening of the store is a part of it."""
    damages: bool = False
    """Whether what was prepared is damaged."""


def _nothing(store):
    del store


def _put(**contents):
    def prepare(store):
        for name, content in contents.items():
            store.artifacts.put(f"t/w/{name}", content)

    return prepare


def _act(method, *arguments, **options):
    return lambda store: getattr(store.artifacts, method)(*arguments, **options)


def _many(store):
    store.artifacts.put_many(
        {"t/w/a": LARGE, "t/w/b": b"small", "t/w/c": OTHER, "t/w/d": THIRD, "t/w/e": b""}
    )


def _deleted(store):
    _put(a=LARGE, b=b"small", c=OTHER)(store)
    store.artifacts.delete("t/w/a")
    store.artifacts.delete("t/w/b")


def _in_cold(store):
    _put(a=LARGE)(store)
    store.artifacts.move("t/w/a", "cold")


def _mixed(store):
    """Let there be something to move each way, to pack where it is, to purge and to empty."""
    store.artifacts.put("t/w/old", OTHER, tier="cold")
    store.artifacts.put("t/w/old-small", b"old", tier="cold")
    store.artifacts.put("t/w/trashed", THIRD)
    store.artifacts.delete("t/w/trashed")
    store.clock.advance(days=70)
    store.artifacts.put("t/w/warm", LARGE, tier="warm")
    store.artifacts.put("t/w/warm-small", b"warm", tier="warm")
    store.clock.advance(days=24)
    store.artifacts.put("t/w/hot", OTHER[1:])
    store.artifacts.put("t/w/hot-small", b"hot")
    store.artifacts.put("t/w/new", THIRD[1:], tier="cold")
    store.namespace("ns").set("key", "value", ttl=86400)


def _damaged(store):
    _put(a=LARGE)(store)
    (file,) = [f for f in store.path.glob("tiers/hot/??/*") if f.is_file()]
    with file.open("r+b") as content:
        content.seek(70_000)
        content.write(bytes([LARGE[70_000] ^ 4]))
    try:
        store.artifacts.get("t/w/a")
    except Damaged:
        return
    raise AssertionError("what was damaged was read")


def _left_over(store):
    """Leave what dead writers leave: a committed file with its note, and one without a record."""
    _put(a=LARGE)(store)
    (file,) = [f for f in store.path.glob("tiers/hot/??/*") if f.is_file()]
    os.link(file, store.path / "tiers/hot/staging" / file.name)
    staging = store.blobs.staging(0)
    staging.write(0, OTHER)
    staging.publish()
    store.blobs.staging(0).write(0, THIRD)
    _put(b=THIRD)(store)


def _garbage(store):
    """Leave a file that is not removed yet, and its note."""
    _put(a=LARGE)(store)
    store.blobs.sweep = lambda **_: 0
    store.artifacts.delete("t/w/a", trash=False)


OPERATIONS = {
    "put small": Operation(_nothing, _act("put", "t/w/a", b"small")),
    "put large new": Operation(_put(b=OTHER), _act("put", "t/w/a", LARGE)),
    "put large into a tier never used": Operation(_nothing, _act("put", "t/w/a", LARGE)),
    "put large equal": Operation(_put(b=LARGE), _act("put", "t/w/a", LARGE)),
    "overwrite large by large": Operation(_put(a=OTHER), _act("put", "t/w/a", LARGE)),
    "overwrite small by large": Operation(_put(a=b"small"), _act("put", "t/w/a", LARGE)),
    "overwrite large by small": Operation(_put(a=LARGE), _act("put", "t/w/a", b"small")),
    "put many": Operation(_put(a=OTHER, b=b"old", c=OTHER), _many),
    "delete small": Operation(_put(a=b"small"), _act("delete", "t/w/a", trash=False)),
    "delete large": Operation(_put(a=LARGE), _act("delete", "t/w/a", trash=False)),
    "delete into the trash": Operation(_put(a=LARGE), _act("delete", "t/w/a")),
    "undelete": Operation(_deleted, _act("undelete", "t/w/a")),
    "empty the trash": Operation(_deleted, _act("empty_trash"), whole=False),
    "move and copy": Operation(_put(a=LARGE), _act("move", "t/w/a", "warm")),
    "move and pack": Operation(_put(a=LONG), _act("move", "t/w/a", "cold")),
    "move small": Operation(_put(a=b"small"), _act("move", "t/w/a", "cold")),
    "restore and unpack": Operation(_in_cold, _act("restore", "t/w/a", "hot", for_seconds=99)),
    "rename over another": Operation(
        _put(a=LARGE, b=OTHER), _act("rename", "t/w/a", "t/w/b", replace=True)
    ),
    "lifecycle run": Operation(_mixed, lambda store: store.lifecycle.run(), whole=False),
    "heal": Operation(_damaged, _act("put", "t/w/b", LARGE), whole=False, damages=True),
    "open after a crash": Operation(_left_over, _nothing, opens=True),
    "open with garbage": Operation(_garbage, _nothing, opens=True),
}


# One process per try


def _forked(function: Callable[[], Any], out: Path) -> tuple[int, Any]:
    """Run a function in a process of its own; give how it ended, and what it gave."""
    out.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        status = 1
        try:
            out.write_text(json.dumps(function()))
            status = 0
        except BaseException:  # noqa: BLE001  (nothing may go on in this process)
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return status, json.loads(out.read_text()) if out.exists() and not status else None


class _Trap:
    """Counts the points that are met, and kills the process at one of them."""

    def __init__(self, at: int | None) -> None:
        self.met: list[str] = []
        self._at = at
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        with self._lock:
            if len(self.met) == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.met.append(name)


class Runs:
    """The runs of one operation."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._operation = OPERATIONS[name]
        self._out = folder / "out"
        self._at_ns = START_NS

    def _open(self, folder: Path):
        return open_store(folder, clock=ManualClock(self._at_ns), settings=SETTINGS)

    def _prepare(self) -> int:
        with self._open(self._folder / "prepared") as store:
            self._operation.prepare(store)
            return store.clock.at_ns + round(self._operation.days * 86400 * 10**9)

    def _copied(self) -> Path:
        copy = self._folder / "store"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._folder / "prepared", copy, copy_function=_linked_or_copied())
        return copy

    def _act(self, folder: Path, at: int | None) -> list[str]:
        trap = _Trap(at)
        if self._operation.opens:
            faults.set_trap(trap)
        with self._open(folder) as store:
            faults.set_trap(trap)
            self._operation.act(store)
            faults.set_trap(None)
        return trap.met

    def _look(self, folder: Path) -> dict[str, str]:
        with self._open(folder) as store:
            return _state(store)

    def prepared(self) -> None:
        """Make the store that every run begins with."""
        status, at_ns = _forked(self._prepare, self._out)
        assert status == 0, f"{self._name}: it cannot be prepared"
        self._at_ns = at_ns

    def recorded(self) -> list[str]:
        """Give the points that one run meets."""
        folder = self._copied()
        status, met = _forked(lambda: self._act(folder, None), self._out)
        assert status == 0, f"{self._name}: it fails"
        return met

    def problems(self) -> tuple[list[str], list[str]]:
        """Kill the operation at each point; give the points, and what is wrong where."""
        self.prepared()
        folder = self._copied()
        _, before = _forked(lambda: self._look(folder), self._out)
        met = self.recorded()
        _, after = _forked(lambda: self._look(folder), self._out)
        last = max((at for at, name in enumerate(met) if name == "committed"), default=-1)
        wrong = []
        for at, name in enumerate(met):
            where = f"killed at {at}, {name}"
            copy = self._copied()
            status, _ = _forked(lambda c=copy, at=at: self._act(c, at), self._out)
            if not os.WIFSIGNALED(status):
                wrong.append(f"{where}: it ended with {status}")
            expected = [before, after] if at <= last else [after]
            status, found = _forked(
                lambda c=copy, e=expected: self._after_kill(c, e, after), self._out
            )
            wrong += [f"{where}: {what}" for what in (found if status == 0 else ["no answer"])]
        return met, wrong

    def _after_kill(
        self, folder: Path, expected: list[dict[str, str]], after: dict[str, str]
    ) -> list[str]:
        wrong = []
        with self._open(folder) as store:
            found = _state(store)
            if found not in expected and (self._operation.whole or len(expected) == 1):
                wrong.append(f"found {found}, expected one of {expected}")
            names = found.keys() | {name for state in expected for name in state}
            wrong += [
                f"{name} is {found.get(name)}"
                for name in sorted(names)
                if found.get(name) not in [state.get(name) for state in expected]
            ]
            damaged = ["damaged"] if self._operation.damages else []
            wrong += [
                str(problem)
                for problem in store.check(verify=True).problems
                if problem.kind not in damaged
            ]
            wrong += _left_in_staging(folder)
            if found != after:
                self._operation.act(store)
            if _state(store) != after:
                wrong.append(f"done again, it leaves {_state(store)}, not {after}")
            store.lifecycle.run()
            wrong += [f"after a run: {problem}" for problem in store.check(verify=True).problems]
            wrong += [f"a note: {key.hex()}" for key, _ in store.engine.scan(b"G", b"H", limit=9)]
        return [*wrong, *_left_in_staging(folder)]


def _state(store) -> dict[str, str]:
    """Give all artifacts, by name, and what is in the trash."""
    found = {f"trash:{each.name}": f"{each.tier} {each.size}" for each in store.artifacts.trash()}
    for artifact in store.artifacts.list():
        try:
            content = store.artifacts.get(artifact.name)
        except Damaged:
            found[artifact.name] = "damaged"
        else:
            seen = hashlib.blake2b(content, digest_size=8).hexdigest()
            found[artifact.name] = f"{artifact.tier} {len(content)} {seen}"
    for key, value in store.namespace("ns").items():
        found[f"key:{key}"] = value
    return found


def _left_in_staging(folder: Path) -> list[str]:
    return [f"left: {path}" for path in folder.glob("tiers/*/staging/*")]


def _linked_or_copied() -> Callable[[str, str], Any]:
    """Copy files, two names of one file as two names of one copy."""
    known: dict[int, str] = {}

    def copied(source: str, target: str) -> None:
        number = os.stat(source).st_ino  # noqa: PTH116  (copytree gives texts)
        if number in known:
            os.link(known[number], target)
        else:
            known[number] = target
            shutil.copy2(source, target)

    return copied


def _main(what: str, folder: str, *names: str) -> None:
    if what == "kill":
        (name,) = names
        met, wrong = Runs(Path(folder), name).problems()
        print(json.dumps([met, wrong]))
        return
    found = {}
    for number, name in enumerate(OPERATIONS):
        runs = Runs(Path(folder) / str(number), name)
        (Path(folder) / str(number)).mkdir()
        runs.prepared()
        found[name] = runs.recorded()
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
