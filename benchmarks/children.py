"""What is measured in a process of its own: ``python -m benchmarks.children WHAT ARGUMENT ...``.

For its memory, for its cores, or because it is the second process of something. A child prints one
line of JSON; `run` starts it and gives that, with the most anonymous memory that it had.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import kvstate
from kvstate.store import open_store

BUFFER_BYTES = 1 << 20
BIG, TEXT, PACKED = "bench/stream/big", "bench/text/log", "bench/packed/random"
_POLL_SECONDS = 0.01
_PASSES = 6


def run(what, *arguments):
    """Run a child; give what it says, and the most RssAnon that was seen, in bytes."""
    command = [sys.executable, "-m", "benchmarks.children", what, *map(str, arguments)]
    os.sync()  # what others wrote before is not to be waited for by this one
    seen = [0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        watch = threading.Thread(target=_watch, args=(child, seen), daemon=True)
        watch.start()
        said = child.stdout.read()
    watch.join()
    if child.returncode:
        raise RuntimeError(f"{command} failed: {child.returncode}")
    return json.loads(said) | {"anonymous": seen[0]}


def _watch(child, seen):
    path = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        with contextlib.suppress(OSError, StopIteration):
            lines = path.read_text(encoding="ascii").splitlines()
            found = next(line for line in lines if line.startswith("RssAnon"))
            seen[0] = max(seen[0], int(found.split()[1]) * 1024)
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _timed(said):
    began = time.perf_counter()
    yield
    said["seconds"] = time.perf_counter() - began


# Streams


def write_stream(folder, source):
    """Read a file and write it to an artifact, 1 MiB at a time, as dd does."""
    said = {}
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with (
        kvstate.open(folder) as store,
        open(source, "rb", buffering=0) as file,  # noqa: PTH123
        _timed(said),
        store.artifacts.writer(BIG) as writer,
    ):
        while count := file.readinto(buffer):
            writer.write(buffer[:count])
    return said


def put_path(folder, source):
    """Store a file by its path."""
    said = {}
    with kvstate.open(folder) as store, _timed(said):
        store.artifacts.put(BIG, source)
    return said


def _drain(file):
    buffer = bytearray(BUFFER_BYTES)
    while file.readinto(buffer):
        pass


def _best_pass(open_file):
    """Give the least time of several passes in one process.

    A process's first buffer of 1 MiB is memory that is copied into more slowly than what is
    allocated after it was freed: a single pass measures that, and not the reading.
    """
    best = float("inf")
    for _ in range(_PASSES):
        said = {}
        with _timed(said), open_file() as file:
            _drain(file)
        best = min(best, said["seconds"])
    return {"seconds": best}


def read_stream(folder):
    """Read an artifact, verified."""
    with kvstate.open(folder) as store:
        return _best_pass(lambda: store.artifacts.open(BIG))


def read_plain(folder):
    """Read the same artifact's file as any program would."""
    files = [path for path in Path(folder, "tiers").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    return _best_pass(lambda: largest.open("rb", buffering=0))


# Cold


def pack(folder, source, cores):
    """Store a file hot, and move it to cold on some of the cores."""
    said = {}
    with kvstate.open(folder) as store:
        store.artifacts.put(TEXT, source)
        os.sync()
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
        with _timed(said):
            store.artifacts.move(TEXT, "cold")
        said["bytes"] = _stored(store, TEXT)
    return said


def _stored(store, name):
    """Give the bytes of an artifact's packed file."""
    blob = store.artifacts._file(name).blob
    with store.blobs.reader(blob) as reader:
        return reader.frames.size


def fill(folder, text, random, small):
    """Fill a store with what `scrub` reads: plain, packed, and small ones."""
    with kvstate.open(folder) as store:
        store.artifacts.put(BIG, random)
        with open(random, "rb") as file:  # noqa: PTH123
            # One byte more in front: else it was the same content, and stored once.
            content = b"\0" + file.read()
        store.artifacts.put(PACKED, content)
        store.artifacts.put(TEXT, text)
        store.artifacts.move(PACKED, "cold")
        store.artifacts.move(TEXT, "cold")
        small = {f"bench/small/{n}": os.urandom(4096) for n in range(int(small))}
        store.artifacts.put_many(small)
    return {}


def scrub(folder, *names):
    """Scrub the blobs of these artifacts, or of all below these prefixes."""
    said = {}
    with kvstate.open(folder) as store:
        found = [item.name for name in names for item in store.artifacts.list(name)]
        blobs = [store.artifacts._file(name).blob for name in found]
        with _timed(said):
            said["bytes"] = sum(map(store.blobs.scrub, blobs))
    return said


# Ages


class Clock:
    """A clock that is set by hand, so that artifacts become due at once."""

    def __init__(self):
        logging.getLogger("kvstate").setLevel(logging.ERROR)  # that it jumps need not be said
        self.at_ns = 1_700_000_000_000_000_000

    def now_ns(self):
        return self.at_ns

    def pass_hours(self, hours):
        self.at_ns += round(hours * 3600 * 10**9)


def build(folder, *per_hour):
    """Fill a store with artifacts of 64 bytes: so many in each hour, 1,000 a workflow."""
    clock = Clock()
    first = 0
    said = {}
    with open_store(folder, clock=clock) as store, _timed(said):
        for count in map(int, per_hour):
            store.artifacts.put_many(
                (f"bench/w{n // 1000:04}/a{n % 1000:03}", n.to_bytes(64, "big"))
                for n in range(first, first + count)
            )
            first += count
            clock.pass_hours(1)
    return said


def main():
    what, *arguments = sys.argv[1:]
    children = (write_stream, put_path, read_stream, read_plain, pack, fill, scrub, build)
    child = next(child for child in children if child.__name__ == what)
    sys.stdout.write(json.dumps(child(*arguments)))


if __name__ == "__main__":
    main()
