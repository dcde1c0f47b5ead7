"""Power cuts: disks that log each write and each barrier, and what a cut may leave of them.

kill -9 cannot show a sync that was forgotten, since the page cache outlives the process. Here an
ext4 stands on a loop device, and that on a file which a small file system of ours shows. All that
reaches the "medium" goes through it and into one log:

    store -> ext4 -> block layer -> /dev/loopN -> <images>/disk0 (FUSE, direct_io) -> log

The block layer's flushes (and what it makes of FUA) arrive as fsync; they are the barriers. A cut
at a place of the log leaves, of each disk, everything before its last barrier; of the writes after
it any may be there, be missing, or be torn at sectors of 512 bytes (`Replay.cut`). That image is
mounted, so ext4 recovers its journal, and a process of its own says what it finds there.

Two functions make a load, each named by its module, since each runs in a process of its own:

    load(mounted, tell, *arguments)   works in the folders mounted/disk0, disk1 ... and after each
                                      call that returned says `tell(effects, whole=, facts=)`
    look(mounted, facts)              opens what a cut left; gives (found, problems)

``effects`` is what changed: names and what is seen under them, None for what is gone; found has the
names and what is seen of all there is. Both are JSON. ``whole``: the call is one step, so that a
cut during it shows all of its effects or none. ``facts`` is handed to the next looks (the time,
say). `Recording.lost` compares: what was told is there, all of it, and nothing else.

    python -m tests.crash.power serve <log> <folder> <image> ...
    python -m tests.crash.power load|look <module:function> <mounted> <json arguments>
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
from bisect import bisect_left
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.harness import fuse_or_skip, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECTOR = 512
_HEADER = struct.Struct("<BBxxIQ")  # kind, disk, bytes that follow, offset
_WRITE, _BARRIER = 0, 1
_REPOSITORY = Path(__file__).parents[2]
_CHUNK = 1 << 18
# What ext4 has not been asked to commit it keeps to itself for as long as it may.
_RECORDING_OPTIONS = "loop,noatime,commit=300"
_LOOKING_OPTIONS = "loop,noatime,nobarrier"
_CHILD_SECONDS = 120


def power_cuts_or_skip() -> None:
    """Skip where no disk can be made; fail where one has to be (KVSTATE_REQUIRE_FUSE=1)."""
    fuse_or_skip()
    missing = None
    if os.getuid() != 0:
        missing = "root, to mount"
    elif not os.access("/dev/loop-control", os.R_OK | os.W_OK) or not _run("losetup", "-f"):
        missing = "loop devices"
    elif _mkfs() is None:
        missing = "mkfs.ext4"
    if missing is None:
        return
    if os.environ.get("KVSTATE_REQUIRE_FUSE") == "1":
        pytest.fail(f"KVSTATE_REQUIRE_FUSE=1, but power cuts need {missing}")
    pytest.skip(f"power cuts need {missing}")


def _run(*command: object) -> bool:
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _mkfs() -> str | None:
    return shutil.which("mkfs.ext4", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


# The disks


class _Disks:
    """A file system of fixed files: each write and each fsync goes to the log before its reply."""

    use_ns = True

    def __init__(self, log: Path, images: list[Path]) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._names = {f"/{image.name}": number for number, image in enumerate(images)}
        self._images = [bytearray(image.read_bytes()) for image in images]

    def __call__(self, operation: str, *arguments: Any) -> Any:
        return getattr(self, operation)(*arguments)

    def _number(self, path: str) -> int:
        number = self._names.get(path)
        if number is None:
            raise OSError(errno.ENOENT, path)
        return number

    def getattr(self, path: str, fh: object) -> dict[str, int]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        size = len(self._images[self._number(path)])
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}

    def read(self, path: str, size: int, offset: int, fh: object) -> bytes:
        return bytes(self._images[self._number(path)][offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: object) -> int:
        number = self._number(path)
        if offset + len(data) > len(self._images[number]):
            raise OSError(errno.ENOSPC, path)
        os.write(self._log, _HEADER.pack(_WRITE, number, len(data), offset) + data)
        self._images[number][offset : offset + len(data)] = data
        return len(data)

    def fsync(self, path: str, datasync: object, fh: object) -> None:
        os.write(self._log, _HEADER.pack(_BARRIER, self._number(path), 0, 0))


def _serve(log: str, folder: str, *images: str) -> None:
    """Show the images in the folder until it is unmounted. One thread: the log is the order."""
    from fuse import FUSE  # noqa: PLC0415  (only this process needs it)

    disks = _Disks(Path(log), [Path(image) for image in images])
    options = {"direct_io": True, "big_writes": True, "max_write": 131072}
    FUSE(disks, folder, foreground=True, nothreads=True, **options)


# The log, and what a cut leaves


class Record(NamedTuple):
    """A write (``data``), or a barrier (None), of one disk; ``end`` is where it ends in the log."""

    disk: int
    offset: int
    data: bytes | None
    end: int


def read_log(path: Path) -> list[Record]:
    """Give the records of a log, in order."""
    log, at, records = path.read_bytes(), 0, []
    while at + _HEADER.size <= len(log):
        kind, disk, size, offset = _HEADER.unpack_from(log, at)
        at += _HEADER.size
        data = log[at : at + size] if kind == _WRITE else None
        at += size
        records.append(Record(disk, offset, data, at))
    return records


class Replay:
    """The disks as they are on the way through the log; it goes forward only."""

    def __init__(self, images: list[bytes], records: list[Record]) -> None:
        self._records = records
        self._durable = [bytearray(image) for image in images]
        self._open: list[list[Record]] = [[] for _ in images]
        self._at = 0

    def advance(self, place: int) -> None:
        """Go on until so many records are done."""
        for record in self._records[self._at : place]:
            if record.data is not None:
                self._open[record.disk].append(record)
                continue
            for write in self._open[record.disk]:
                _apply(self._durable[record.disk], write)
            self._open[record.disk].clear()
        self._at = max(self._at, place)

    def cut(self, rng: random.Random) -> list[bytearray]:
        """Give the disks as a power cut here may leave them.

        One cut in three loses all that no barrier followed; the others keep a random part of it.
        """
        kept = rng.choice((0.0, 0.2, 0.5, 0.8, 0.98, 0.0))
        images = [bytearray(durable) for durable in self._durable]
        for image, writes in zip(images, self._open, strict=True):
            for write in writes:
                if rng.random() < kept:
                    _apply(image, write)
                elif kept and rng.random() < 0.3:
                    _tear(image, write, rng)
        return images


def _apply(image: bytearray, write: Record) -> None:
    image[write.offset : write.offset + len(write.data)] = write.data


def _tear(image: bytearray, write: Record, rng: random.Random) -> None:
    """Let some of the write's sectors be there."""
    for start in range(0, len(write.data), SECTOR):
        if rng.random() < 0.5:
            part = write.data[start : start + SECTOR]
            image[write.offset + start : write.offset + start + len(part)] = part


# Recording


class Told(NamedTuple):
    """What the load told after a call returned, and how long the log was then."""

    effects: dict[str, Any]
    whole: bool
    facts: Any
    position: int


class Recording:
    """The log of one run of a load, and what was acknowledged where."""

    def __init__(
        self,
        folder: Path,
        look: Callable[..., Any],
        bases: list[Path],
        records: list[Record],
        begin: int,
        told: list[Told],
    ) -> None:
        self.records = records
        self.told = told
        self._folder = folder
        self._look = look
        self._images = [base.read_bytes() for base in bases]
        self._ends = [0, *(record.end for record in records)]
        self._first = self._place(begin)
        self._last = self._place(told[-1].position)

    def _place(self, position: int) -> int:
        """Give how many records there were when the log was so long."""
        return bisect_left(self._ends, position)

    @property
    def acknowledgements(self) -> list[int]:
        """The places right after something was told."""
        return [self._place(told.position) for told in self.told]

    @property
    def barriers(self) -> list[int]:
        """The places right before each barrier."""
        span = range(self._first, self._last)
        return [place for place in span if self.records[place].data is None]

    def places(self, count: int, rng: random.Random) -> list[int]:
        """Choose places to cut at: after acknowledgements, around barriers, and anywhere."""
        barriers = self.barriers
        span = range(self._first, self._last + 1)
        around = [*barriers, *(place + 1 for place in barriers)]
        chosen: set[int] = set()
        for source, share in ((self.acknowledgements, 3), (around, 3), (list(span), 1)):
            left = sorted(set(source) - chosen)
            chosen |= set(rng.sample(left, min(len(left), -(-(count - len(chosen)) // share))))
        return sorted(chosen)

    def lost(self, places: list[int], seed: int) -> list[str]:
        """Cut at each of the places; say what is wrong where. The first such disks are kept."""
        replay, wrong = Replay(self._images, self.records), []
        for place in sorted(places):
            replay.advance(place)
            images = replay.cut(random.Random(f"{seed} {place}"))
            if not (found := self._look_at(images, place)):
                continue
            if not wrong:
                found = f"{found} (the disks: {self._written(images, 'kept')})"
            wrong.append(f"cut at {place} of {len(self.records)}, seed {seed}: {found}")
        return wrong

    def _written(self, images: list[bytearray], name: str) -> list[Path]:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        paths = [folder / f"disk{number}" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            _write_sparse(path, image)
        return paths

    def _look_at(self, images: list[bytearray], place: int) -> str:
        done, under_way = self._state(place)
        facts = done[-1].facts if done else None
        mounted = self._folder / "cut"
        with contextlib.ExitStack() as stack:
            for path in self._written(images, "images-cut"):
                if not _mounted(stack, path, mounted / path.name, _LOOKING_OPTIONS):
                    return "the file system cannot be mounted"
            command = _command("look", self._look, mounted, [facts])
            child = subprocess.run(
                command,
                cwd=_REPOSITORY,
                capture_output=True,
                text=True,
                timeout=_CHILD_SECONDS,
                check=False,
                start_new_session=True,
            )
        if child.returncode:
            return f"opening it ends with {child.returncode}: {child.stderr.strip()[-2000:]}"
        found, problems = json.loads(child.stdout)
        expected: dict[str, Any] = {}
        for told in done:
            expected = _after(expected, told.effects)
        differences = _differences(expected, under_way, found)
        return " ".join(
            [*map(str, problems), *([f"told, found: {differences}"] * bool(differences))]
        )

    def _state(self, place: int) -> tuple[list[Told], Told | None]:
        """Give what was told up to a place, and what was under way there."""
        position = self._ends[place]
        done = [told for told in self.told if told.position <= position]
        return done, self.told[len(done)] if len(done) < len(self.told) else None


def _after(state: dict[str, Any], effects: dict[str, Any]) -> dict[str, Any]:
    return {name: seen for name, seen in {**state, **effects}.items() if seen is not None}


def _differences(before: dict[str, Any], under_way: Told | None, found: dict[str, Any]) -> Any:
    """Compare what was found with what was told; what was under way may show, or not yet."""
    after = _after(before, under_way.effects) if under_way else before
    if under_way and under_way.whole and found == after:
        return {}
    may_differ = under_way.effects if under_way and not under_way.whole else {}
    return {
        name: (before.get(name), found.get(name))
        for name in before.keys() | found.keys()
        if found.get(name) != before.get(name)
        and not (name in may_differ and found.get(name) == after.get(name))
    }


def _write_sparse(path: Path, image: bytearray) -> None:
    zeros, view = bytes(_CHUNK), memoryview(image)
    with path.open("wb") as file:
        for start in range(0, len(image), _CHUNK):
            if view[start : start + _CHUNK] != zeros[: len(image) - start]:
                file.seek(start)
                file.write(view[start : start + _CHUNK])
        file.truncate(len(image))


def _mounted(stack: contextlib.ExitStack, image: Path, folder: Path, options: str) -> bool:
    """Mount an image until the stack ends; the loop device goes with the mount."""
    folder.mkdir(parents=True, exist_ok=True)
    stack.callback(_unmount, folder)
    return _run("mount", "-t", "ext4", "-o", options, image, folder)


def _unmount(folder: Path) -> None:
    if os.path.ismount(folder) and not _run("umount", folder):
        _run("umount", "-l", folder)


def _end(process: subprocess.Popen[Any], *, kill: bool) -> None:
    """See a process of ours end, by force if it does not by itself."""
    if kill:
        process.kill()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _command(what: str, function: Callable[..., Any], mounted: Path, arguments: list[Any]) -> Any:
    name = f"{function.__module__}:{function.__name__}"
    return [sys.executable, "-m", __name__, what, name, mounted, json.dumps(arguments)]


@contextlib.contextmanager
def _disks(folder: Path, count: int, megabytes: int) -> Iterator[tuple[list[Path], Path, Path]]:
    """Make disks and mount them; give their first images, their log and where they are mounted."""
    log, shown, mounted = folder / "log", folder / "images", folder / "mounted"
    shown.mkdir(parents=True)
    bases = [folder / f"disk{number}" for number in range(count)]
    for base in bases:
        with base.open("wb") as file:
            file.truncate(megabytes << 20)
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        assert _run(_mkfs(), "-q", "-F", "-b", 4096, "-E", options, base), "mkfs.ext4 failed"
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, "serve", log, shown, *bases],
            cwd=_REPOSITORY,
            start_new_session=True,  # an interrupt is for the test, which then clears up in order
        )
        stack.callback(_end, server, kill=False)
        stack.callback(lambda: _run("umount", "-l", shown))
        wait_for(lambda: server.poll() is not None or os.path.ismount(shown), what="the disks")
        for base in bases:
            made = _mounted(stack, shown / base.name, mounted / base.name, _RECORDING_OPTIONS)
            assert made, f"{base.name} cannot be mounted"
        yield bases, log, mounted


def record(
    folder: Path,
    load: Callable[..., None],
    look: Callable[..., Any],
    *arguments: Any,
    disks: int = 1,
    megabytes: int = 64,
) -> Recording:
    """Run the load to its end on new disks, and give what they and it said."""
    with contextlib.ExitStack() as stack:
        bases, log, mounted = stack.enter_context(_disks(folder, disks, megabytes))
        begin = log.stat().st_size
        child = subprocess.Popen(
            _command("load", load, mounted, list(arguments)),
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        stack.callback(_end, child, kill=True)
        told = []
        for line in child.stdout:
            told.append(Told(*json.loads(line), position=log.stat().st_size))
            child.stdin.write("\n")
            child.stdin.flush()
        assert child.wait(20) == 0, "the load failed"
        assert told, "the load told nothing"
    return Recording(folder, look, bases, read_log(log), begin, told)


# The other processes' doors


def _tell(effects: dict[str, Any], *, whole: bool = True, facts: Any = None) -> None:
    """Say what a call that returned did, and wait until that is written down."""
    sys.stdout.write(json.dumps([effects, whole, facts]) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


def _main(what: str, *words: str) -> None:
    if what == "serve":
        _serve(*words)
        return
    name, mounted, arguments = words
    module, _, function = name.partition(":")
    called = getattr(import_module(module), function)
    if what == "load":
        called(Path(mounted), _tell, *json.loads(arguments))
    else:
        sys.stdout.write(json.dumps(called(Path(mounted), *json.loads(arguments))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
