"""The rivals: raw py-lmdb, diskcache, SQLite, Redis; plain files; the disk and bindfs."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import time

import cbor2
import lmdb

from benchmarks.workloads import NotRun


class RawLmdb:
    """py-lmdb as its own documentation uses it: a transaction for each call, CBOR when scanning."""

    durable = True

    def __init__(self, folder):
        self.env = lmdb.open(str(folder / "lmdb"), map_size=1 << 40)

    def get(self, key):
        with self.env.begin() as txn:
            return txn.get(key.encode())

    def set(self, key, value):
        with self.env.begin(write=True) as txn:
            txn.put(key.encode(), value.encode())

    def set_many(self, pairs):
        with self.env.begin(write=True) as txn:
            for key, value in pairs.items():
                txn.put(key.encode(), cbor2.dumps(value))

    def scan(self):
        with self.env.begin() as txn:
            return sum(1 for key, value in txn.cursor() if (key.decode(), cbor2.loads(value)))

    def close(self):
        self.env.close()


class DiskCache:
    durable = False  # its SQLite runs without fsync

    def __init__(self, folder):
        try:
            import diskcache  # noqa: PLC0415  (may be missing)
        except ImportError:
            raise NotRun("pip install -e '.[bench]'") from None
        self.cache = diskcache.Cache(str(folder / "diskcache"))
        self.get, self.set = self.cache.get, self.cache.set

    def set_many(self, pairs):
        with self.cache.transact():
            for key, value in pairs.items():
                self.cache.set(key, value)

    def scan(self):
        return sum(1 for key in self.cache if self.cache.get(key) is not None)

    def close(self):
        self.cache.close()


class Sqlite:
    durable = True

    def __init__(self, folder):
        self.db = sqlite3.connect(folder / "sqlite.db", isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def get(self, key):
        return self.db.execute("SELECT value FROM kv WHERE key=?", (key,)).fetchone()

    def set(self, key, value):
        self.db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def set_many(self, pairs):
        self.db.execute("BEGIN")
        self.db.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", pairs.items())
        self.db.execute("COMMIT")

    def scan(self):
        return sum(1 for _ in self.db.execute("SELECT key, value FROM kv ORDER BY key"))

    def close(self):
        self.db.close()


class Redis:
    """A redis-server of our own on a Unix socket; every write synced (appendfsync always)."""

    durable = True

    def __init__(self, folder):
        if shutil.which("redis-server") is None:
            raise NotRun("apt-get install redis-server")
        try:
            import redis  # noqa: PLC0415  (may be missing)
        except ImportError:
            raise NotRun("pip install -e '.[bench]'") from None
        socket = folder / "redis.sock"
        options = ["--port", "0", "--unixsocket", socket, "--dir", folder, "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"]
        self.server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        self.client = redis.Redis(unix_socket_path=str(socket))
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    self.server.terminate()
                    raise
                time.sleep(0.02)
        self.get, self.set = self.client.get, self.client.set

    def set_many(self, pairs):
        with self.client.pipeline(transaction=True) as pipe:
            for key, value in pairs.items():
                pipe.set(key, value)
            pipe.execute()

    def close(self):
        self.client.close()
        self.server.terminate()
        self.server.wait(20)


class PlainFiles:
    """Files as most programs write them: synced (temporary name, rename, folder), or not."""

    def __init__(self, folder, *, sync):
        self.folder = folder / ("synced" if sync else "plain")
        self.sync = sync

    def _path(self, name):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put(self, name, content):
        path = self._path(name)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(content)
            if self.sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(path)
        if self.sync:
            fd = os.open(path.parent, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    def get(self, name):
        return (self.folder / name).read_bytes()


class SyncedCycle:
    """The shortest way to a synced file: write, fsync, rename, fsync of the folder, no more."""

    def __init__(self, folder):
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._turn = 0

    def put(self, _name, content):
        self._turn += 1
        name, folder = f"cycle{self._turn}", self._folder
        fd = os.open("temporary", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)
        os.write(fd, content)
        os.fsync(fd)
        os.close(fd)
        os.rename("temporary", name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)

    def close(self):
        os.close(self._folder)


def timed(command):
    """Run a program; give the seconds that it took."""
    os.sync()  # what others wrote before is not to be waited for by this one
    began = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def dd(source, target):
    return timed(["dd", f"if={source}", f"of={target}", "bs=1M", "conv=fsync"])


def zstd(source, target, cores):
    """Compress a file on some of the cores; a thread for each."""
    for program in ("zstd", "taskset"):
        if shutil.which(program) is None:
            raise NotRun(f"apt-get install {program}")
    threads = len(cores.split(","))
    command = ["zstd", "-3", f"-T{threads}", "-q", "-f", source, "-o", target]
    return timed(["taskset", "-c", cores, *command])


@contextlib.contextmanager
def disk(folder):
    place = folder / "disk"
    place.mkdir()
    yield place


@contextlib.contextmanager
def bindfs(folder):
    if shutil.which("bindfs") is None:
        raise NotRun("apt-get install bindfs")
    source, mount = folder / "bound", folder / "bindfs"
    source.mkdir()
    mount.mkdir()
    subprocess.run(["bindfs", source, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=False)
