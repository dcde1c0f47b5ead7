"""The workloads, written once: what every contender does, and how its time is taken.

A round takes every contender once, one after the other, so that a noisy moment hits all of them;
the best of the rounds counts, since noise only ever adds.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time

KEYS = [f"key:{number:06d}" for number in range(10_000)]
VALUE = "v" * 100
SIZES = {"1 kB": 1000, "64 kB": 64_000, "16 MiB": 16 << 20}


class NotRun(Exception):
    """A contender that is not there: the message says what to install."""


def best_of(contenders, work, rounds, seen=None):
    """Give each contender's best time for the work, in microseconds; None for who cannot.

    Every time goes into the list ``seen``, with the contender's name.
    """
    best = {}
    for _ in range(rounds):
        for name, contender in contenders.items():
            began = time.perf_counter()
            count = work(contender)
            if count is None:
                best[name] = None
                continue
            spent = (time.perf_counter() - began) / count * 1e6
            best[name] = min(spent, best.get(name) or spent)
            if seen is not None:
                seen.append((name, spent))
    return best


# Keys: a contender has get(key), set(key, value), set_many(mapping), scan() -> number of entries


def get(store, count=2000):
    for key in KEYS[:count]:
        store.get(key)
    return count


def durable_set(store, count=60):
    if not store.durable:
        return None
    for key in KEYS[:count]:
        store.set(key, VALUE)
    return count


def loose_set(store, count=1000):
    """Set one by one, synced or not."""
    for key in KEYS[:count]:
        store.set(key, VALUE)
    return count


def batch_set(store):
    if not hasattr(store, "set_many"):
        return None
    store.set_many(dict.fromkeys(KEYS, VALUE))
    return len(KEYS)


def scan(store):
    return store.scan() if hasattr(store, "scan") else None


# Content: a contender has put(name, content) and get(name)


def put_content(size, count):
    contents = [os.urandom(16) * (size // 16) + os.urandom(size % 16) for _ in range(count)]
    turn = iter(range(10**9))

    def work(store):
        for content in contents:
            # Content that was never there before: equal content would be stored once.
            store.put(f"bench/put/{size}", next(turn).to_bytes(8, "big") + content[8:])
        return count

    return work


def put_together(size, count=10_000):
    content, turn = os.urandom(size), iter(range(10**9))

    def work(store):
        place = f"bench/many{next(turn)}"
        pairs = {f"{place}/{n:05}": os.urandom(8) + content[8:] for n in range(count)}
        store.put_many(pairs)
        return count

    return work


def get_content(size, count):
    def work(store):
        name = f"bench/get/{size}"
        if not getattr(store, "prepared", None):
            store.prepared = set()
        if name not in store.prepared:
            store.put(name, os.urandom(size))
            store.prepared.add(name)
        for _ in range(count):
            assert len(store.get(name)) == size
        return count

    return work


# Files: a contender is a folder


def prepare_files(folder, count=1000):
    listing = folder / "listing"
    listing.mkdir(parents=True)
    for number in range(count):
        (listing / f"f{number:04d}").write_bytes(b"x" * 1000)
    _read(listing / "f0000")


def _read(path):
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 1 << 17)
    os.close(fd)


def stat(folder, count=300):
    path = str(folder / "listing/f0007")
    for _ in range(count):
        os.stat(path)  # noqa: PTH116  (pathlib would be measured, too)
    return count


def open_read_close(folder, count=300):
    path = str(folder / "listing/f0007")
    for _ in range(count):
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)
    return count


def create(folder, count=30):
    for number in range(count):
        fd = os.open(folder / f"created{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, b"x" * 1000)
        os.close(fd)
    for number in range(count):
        (folder / f"created{number}").unlink()
    return count


def create_durable(folder, count=30):
    for number in range(count):
        fd = os.open(folder / f"created{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, b"x" * 1000)
        os.fsync(fd)
        os.close(fd)
    for number in range(count):
        (folder / f"created{number}").unlink()
    return count


def list_long(folder):
    subprocess.run(["ls", "-l", folder / "listing"], stdout=subprocess.DEVNULL, check=True)
    return 1


BIG_BYTES = 256 << 20
_BLOCK = os.urandom(1 << 20)


def write_big(folder):
    with (folder / "big").open("wb", buffering=0) as file:
        for _ in range(BIG_BYTES >> 20):
            file.write(_BLOCK)
        os.fsync(file.fileno())
    return BIG_BYTES >> 20


def read_big(folder):
    with (folder / "big").open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass
    return BIG_BYTES >> 20


def text_file(path, size):
    """Write a log as programs write them: zstd -3 makes about a sixth of it.

    No part comes again within the window of any level that is measured here.
    """
    rng = random.Random(7)
    words = ["".join(rng.choices("etaoinshrdlucm", k=rng.randint(2, 9))) for _ in range(4000)]
    weights = [1 / n for n in range(1, len(words) + 1)]
    lines, length, second = [], 0, 0
    while length < min(size, 16 << 20):
        second += rng.randint(0, 2)
        said = " ".join(rng.choices(words, weights, k=rng.randint(4, 14)))
        stamp = f"2026-11-{second // 86400 + 1:02}T{second // 3600 % 24:02}:{second // 60 % 60:02}"
        level = rng.choice(("INFO", "INFO", "DEBUG", "WARN"))
        lines.append(f"{stamp}:{second % 60:02}.{rng.randint(0, 999):03}Z {level} {said}\n")
        length += len(lines[-1])
    block = "".join(lines).encode()
    with path.open("wb") as file:
        for begin in range(0, size, len(block)):
            file.write(block[: size - begin])


def random_file(path, size):
    """Write what cannot be compressed and was never there before, and sync it."""
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())


def touch_memory(folder, size):
    """Let so much memory be free that was in use a moment ago.

    A virtual machine's host gives memory on its first touch, page by page, slower than any disk:
    without this the measured work would pay for it in one round, and not in the next.
    """
    path = folder / "touched"
    block = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(block)
    path.unlink()


def drop_big(folder):
    with contextlib.suppress(FileNotFoundError):
        (folder / "big").unlink()
