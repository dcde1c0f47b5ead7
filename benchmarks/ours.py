"""kvstate as a contender: embedded, over the daemon's socket, and mounted."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

import kvstate
from benchmarks import children, workloads
from kvstate.store import open_store

DEADLINE_SECONDS = 30


class Keys:
    """A namespace of an open store."""

    durable = True

    def __init__(self, store):
        self.store = store
        namespace = store.namespace("bench")
        self.get, self.set, self.set_many = namespace.get, namespace.set, namespace.set_many
        self._namespace = namespace

    def scan(self):
        return sum(1 for _ in self._namespace.scan())


class Contents:
    """The artifacts of an open store."""

    def __init__(self, store):
        self.get, self.put = store.artifacts.get, store.artifacts.put
        self.put_many = store.artifacts.put_many


@contextlib.contextmanager
def process(command, ready):
    """Run a process of ours until the end; ``ready`` says when it is up."""
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not ready():
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command} does not come up: {child.returncode}")
                time.sleep(0.01)
            drain = threading.Thread(target=child.stderr.read, daemon=True)
            drain.start()
            yield child
        finally:
            child.terminate()
            child.wait(DEADLINE_SECONDS)


@contextlib.contextmanager
def daemon(folder):
    """Run `kvstated`; give its socket."""
    socket = folder / "kvstated.sock"
    command = [sys.executable, "-m", "kvstated", "--store", folder / "served", "--socket", socket]
    with process(command, socket.exists):
        yield socket


@contextlib.contextmanager
def mounted(folder):
    """Mount a store; give a workflow's folder in it."""
    mount = folder / "mount"
    mount.mkdir()
    command = [sys.executable, "-m", "kvstatefs", folder / "mounted", mount, "-f"]
    kvstate.open(folder / "mounted").close()
    try:
        with process(command, lambda: os.path.ismount(mount)):
            place = mount / "hot/bench/files"
            place.mkdir(parents=True)
            yield place
            subprocess.run(["fusermount", "-u", "-z", mount], check=False)
    finally:
        if os.path.ismount(mount):
            subprocess.run(["umount", "-l", mount], check=False)


def _client_sets(socket, number, count, go):
    with kvstate.connect(socket) as store:
        namespace = store.namespace(f"client{number}")
        namespace.set("warm", 1)
        go.wait()
        for key in range(count):
            namespace.set(f"k{key}", "v" * 100)


def concurrent_sets(socket, clients=32, processes=4, each=40):
    """Give durable sets a second by many clients at once."""
    program = (
        "import sys, threading; from benchmarks.ours import client_threads;"
        "client_threads(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))"
    )
    began = time.perf_counter()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, socket, str(n), str(clients // processes), str(each)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
        )
        for n in range(processes)
    ]
    for child in children:
        child.stdout.readline()
    began = time.perf_counter()
    for child in children:
        child.stdin.close()
    for child in children:
        child.wait()
        child.stdout.close()
    return clients * each / (time.perf_counter() - began)


def client_threads(socket, number, threads, each):
    """Be one of the processes of `concurrent_sets`: connect, say so, wait, and set."""
    go = threading.Event()
    running = [
        threading.Thread(target=_client_sets, args=(socket, number * 100 + n, each, go))
        for n in range(threads)
    ]
    for thread in running:
        thread.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    go.set()
    for thread in running:
        thread.join()


class _Clock:
    """A clock that is set by hand, so that keys become due at once."""

    at_ns = 1_700_000_000_000_000_000

    def now_ns(self):
        return self.at_ns


class Expiring:
    """A store of keys that expire, the first tenth of them soon."""

    def __init__(self, folder, total, stack):
        self.clock = _Clock()
        self.store = stack.enter_context(open_store(folder, clock=self.clock))
        self.due = total // 10
        namespace = self.store.namespace("bench")
        for first in range(0, total, 10_000):
            batch = {f"k{n:07}": workloads.VALUE for n in range(first, first + 10_000)}
            ttls = ((10.0, first < self.due), (None, first >= self.due))
            namespace.set_many(batch, ttl=next(ttl for ttl, wanted in ttls if wanted))

    def idle_sweep(self):
        """Give the best time of a sweep that finds nothing due, in µs."""
        best = float("inf")
        for _ in range(200):
            began = time.perf_counter()
            self.store.lifecycle.expire()
            best = min(best, time.perf_counter() - began)
        return best * 1e6

    def sweep_rate(self):
        """Give how many due keys are swept per second."""
        self.clock.at_ns += 11 * 10**9
        began = time.perf_counter()
        swept = self.store.lifecycle.expire()
        assert swept == self.due
        return swept / (time.perf_counter() - began)


class Aging:
    """A store of small artifacts, some of which are due together, an hour after those before."""

    HOT_HOURS = 7 * 24

    def __init__(self, folder, per_hour, stack):
        self.built_seconds = children.run("build", folder, *per_hour)["seconds"]
        self.per_hour = per_hour
        self.clock = children.Clock()
        self.clock.pass_hours(len(per_hour))
        self._store = stack.enter_context(open_store(folder, clock=self.clock))
        self._hour = 0

    def run(self):
        return self._store.lifecycle.run()

    def look(self):
        assert self._store.lifecycle.next_due_ns() > self.clock.at_ns

    def make_due(self):
        """Let the next hour's artifacts be due; give how many they are."""
        start = children.Clock()
        start.pass_hours(self.HOT_HOURS + self._hour + 0.5)
        self.clock.at_ns = start.at_ns
        self._hour += 1
        return self.per_hour[self._hour - 1]

    def run_due(self, count):
        """Give the time of a run that moves so many, in µs."""
        began = time.perf_counter()
        outcome = self.run()
        spent = time.perf_counter() - began
        assert (outcome.promoted_to_warm, outcome.errors) == (count, 0), outcome
        return spent * 1e6


def anonymous_bytes(folder):
    """Give the anonymous memory of a process that has read a tenth of a store's keys."""
    program = (
        "import sys, kvstate; store = kvstate.open(sys.argv[1]); "
        "namespace = store.namespace('bench'); "
        "[None for _ in zip(range(100_000), namespace.scan())]; "
        "print(next(line.split()[1] for line in open('/proc/self/smaps_rollup') "
        "if line.startswith('Anonymous')))"
    )
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) * 1024
