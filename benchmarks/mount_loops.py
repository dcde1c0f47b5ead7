"""The process that uses the mounts: ``python -m benchmarks.mount_loops``, loops of system calls.

It imports nothing of ours, has one thread and collects no garbage, so that what it measures is the
kernel, the mount and the few tenths of a microsecond that `os.open` costs. It reads lines of JSON
(a loop's name and its arguments) and answers each with one. `Loops`, in the parent, waits for the
answer only so long: a mount that hangs holds nobody else up.
"""

# ruff: noqa: PTH108, PTH116, PTH123

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import select
import subprocess
import sys
import time

MIB = 1 << 20
FORGET_SECONDS = 0.15
"""Whoever serves a mount is told of each name that the kernel forgets: that is not measured."""
_now = time.perf_counter_ns


class Hung(Exception):
    """A loop did not come back in time."""


class Loops:
    """The other side: runs loops in a child; one that hangs is left behind for a new one."""

    def __init__(self):
        self._child = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._leave()

    def __call__(self, name, *arguments, seconds=180):
        if self._child is None:
            command = [sys.executable, "-m", "benchmarks.mount_loops"]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child = self._child
        child.stdin.write(json.dumps([name, *arguments], default=str).encode() + b"\n")
        child.stdin.flush()
        if not select.select([child.stdout], [], [], seconds)[0]:
            self._leave()
            raise Hung(f"no answer in {seconds} s")
        said = json.loads(child.stdout.readline() or b'{"error": "the process died"}')
        if isinstance(said, dict):
            raise OSError(said["error"])
        return said

    def _leave(self):
        if self._child is None:
            return
        child, self._child = self._child, None
        child.kill()
        child.stdin.close()
        child.stdout.close()
        # Who hangs in the kernel dies when its mount is gone, not before.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)


# Small: each gives nanoseconds, for one of them


def _many(act, path, milliseconds):
    """Do it warm: a few untimed, then in bunches for so long."""
    for _ in range(20):
        act(path)
    total, until = 0, _now() + milliseconds * 1_000_000
    began = ended = _now()
    while ended < until:
        for _ in range(100):
            act(path)
        total += 100
        ended = _now()
    return (ended - began) / total


def warm(path, milliseconds=25):
    open_, read, close = os.open, os.read, os.close

    def cycle(path):
        fd = open_(path, 0)
        read(fd, 8192)
        close(fd)

    return _many(cycle, path, milliseconds)


def stat(path, milliseconds=15):
    return _many(os.stat, path, milliseconds)


def first(folder, names, size):
    """Open names that nobody has asked this mount for."""
    paths = [f"{folder}/{name}" for name in names]
    os.stat(folder)
    began = _now()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        content = os.read(fd, 8192)
        os.close(fd)
    spent = _now() - began
    if len(content) != size:
        raise OSError(f"{paths[-1]}: {len(content)} bytes")
    return spent / len(paths)


def create(folder, names, synced):
    """Create, write 4 KiB, close; where close is not durable, fsync the file and its folder."""
    content = os.urandom(4096)
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    paths = [f"{folder}/{name}" for name in names]
    began = _now()
    for number, path in enumerate(paths):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, number.to_bytes(8, "big") + content[8:])
        if synced:
            os.fsync(fd)
        os.close(fd)
        if synced:
            os.fsync(parent)
    spent = _now() - began
    for path in paths:
        os.unlink(path)
    os.close(parent)
    os.sync()
    return spent / len(paths)


# Large: each gives nanoseconds, for all of it


def read_big(path, drop=False):  # noqa: FBT002  (what comes over a pipe has no names)
    buffer = bytearray(MIB)
    fd = os.open(path, os.O_RDONLY)
    if drop:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    seen = 0
    began = _now()
    while count := os.readv(fd, [buffer]):
        seen += count
    spent = _now() - began
    os.close(fd)
    if seen != size:
        raise OSError(f"{path}: {seen} of {size} bytes")
    return spent


def read_random(path, count):
    """Read 4 KiB here and there."""
    buffers = [bytearray(4096)]
    fd = os.open(path, os.O_RDONLY)
    blocks = os.fstat(fd).st_size // 4096
    rng = random.Random(count)
    offsets = [rng.randrange(blocks) * 4096 for _ in range(count)]
    preadv = os.preadv
    began = _now()
    for offset in offsets:
        preadv(fd, buffers, offset)
    spent = _now() - began
    os.close(fd)
    return spent


def write_big(path, mib):
    """Write what was never there before, and fsync it."""
    block = bytearray(os.urandom(MIB))
    began = _now()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for number in range(mib):
        block[:8] = number.to_bytes(8, "big")
        if os.write(fd, block) != MIB:
            raise OSError(f"{path}: a short write")
    os.fsync(fd)
    os.close(fd)
    spent = _now() - began
    os.unlink(path)
    os.sync()  # what the removal leaves to do is not to be waited for by the next one
    return spent


def settle(path):
    """Let a file's pages be those of a plain sequential read, however it was written."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    return read_big(path)


# Programs, and what makes them cold


def program(*command):
    """Run it; nanoseconds. Its status does not count: grep that finds nothing gives 1."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    began = _now()
    pid = os.posix_spawnp(command[0], command, os.environ | {"LC_ALL": "C"}, file_actions=quiet)
    _, status = os.waitpid(pid, 0)
    spent = _now() - began
    if os.waitstatus_to_exitcode(status) not in {0, 1}:
        raise OSError(f"{command[0]} gives {os.waitstatus_to_exitcode(status)}")
    return spent


def drop(folder, names, below):
    """Let the kernel forget what it knows of a mount's folder; what lies below stays known."""
    for path in [folder, *(f"{folder}/{name}" for name in names)]:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    for _ in range(2):
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("2\n")
    for root in below:
        for where, _, files in os.walk(root):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    os.stat(f"{where}/{name}")
    time.sleep(FORGET_SECONDS)
    return 0


LOOPS = (
    warm,
    stat,
    first,
    create,
    read_big,
    read_random,
    write_big,
    settle,
    program,
    drop,
)


def main():
    gc.disable()
    loops = {loop.__name__: loop for loop in LOOPS}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            said = loops[name](*arguments)
        except OSError as error:
            said = {"error": f"{name}: {error}"}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
