"""What others do to a store while its mount is used: 16 clients that write, and single changes.

``python -m benchmarks.mount_changes write SOCKET NUMBER THREADS`` is one process of clients; it
sets keys until it is killed. ``... look STORE STATE FOLDER TURNS`` changes a store and looks at its
mount.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import kvstate
from benchmarks import ours
from benchmarks.mount_rivals import NAMESPACE

CLIENTS, PROCESSES = 16, 2
DEADLINE_SECONDS = 10
_SETTLE_SECONDS = 0.1


# Sixteen clients


class Clients:
    """Processes of clients that set keys as fast as they can, or stand still."""

    def __init__(self, socket):
        each = str(CLIENTS // PROCESSES)
        command = [sys.executable, "-m", "benchmarks.mount_changes", "write", socket]
        self._children = [
            subprocess.Popen([*command, str(number), each], stdout=subprocess.PIPE)
            for number in range(PROCESSES)
        ]

    def __enter__(self):
        for child in self._children:
            if not child.stdout.readline():
                raise RuntimeError("a process of clients does not come up")
        self.rest()
        return self

    def __exit__(self, *_):
        for child in self._children:
            child.kill()
            child.wait()
            child.stdout.close()

    def write(self):
        self._signal(signal.SIGCONT)

    def rest(self):
        self._signal(signal.SIGSTOP)

    def _signal(self, number):
        for child in self._children:
            child.send_signal(number)
        time.sleep(_SETTLE_SECONDS)  # the daemon answers what was asked before


def beside_clients(place, folder, act, rounds):
    """Give all times of an act: at rest, and while the clients write; and their sets a second."""
    folder.mkdir(exist_ok=True)
    socket = folder / "clients.sock"
    command = [sys.executable, "-m", "kvstated", "--store", place.store, "--socket", socket]
    rest, busy, seconds = [], [], 0.0
    with (
        ours.process(command, socket.exists),
        Clients(socket) as clients,
        kvstate.connect(socket) as store,
    ):
        before = _sets(store)
        for _ in range(rounds):
            rest.append(act(place))
            began = time.perf_counter()
            clients.write()
            busy.append(act(place))
            clients.rest()
            seconds += time.perf_counter() - began - _SETTLE_SECONDS
        sets = _sets(store) - before
    return rest, busy, sets / seconds


def _client(socket, name):
    with kvstate.connect(socket) as store:
        namespace = store.namespace("clients")
        for number in itertools.count():
            namespace.set(f"{name}-{number % 1000}", f"{number:0100}")


def _sets(store):
    """Give how many sets the clients have done."""
    latest = {}
    for entry in store.namespace("clients").scan():
        name = entry.key.rpartition("-")[0]
        latest[name] = max(latest.get(name, 0), int(entry.value))
    return sum(latest.values())


def write(socket, number, threads):
    for thread in range(int(threads)):
        name = f"{number}-{thread}"
        threading.Thread(target=_client, args=(socket, name), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.pause()


# Single changes


def _read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _size(path):
    try:
        return os.stat(path).st_size  # noqa: PTH116  (pathlib would be measured, too)
    except FileNotFoundError:
        return None


def visible_after(place, turns):
    """Give, for each kind of change, the milliseconds until the mount showed it.

    Another process commits; from that moment on a loop asks the mount, which has given the old
    answer a moment before. `OSError` says that the loop did not end.
    """
    command = [sys.executable, "-m", "benchmarks.mount_changes", "look"]
    command += [str(place.store), str(place.state), str(place.folder), str(turns)]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"no answer in {error.timeout:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise OSError(error.stderr.strip().splitlines()[-1]) from None
    return json.loads(done.stdout)


def look(store_path, state, folder, turns):
    with kvstate.open(store_path) as store:
        keys = store.namespace(NAMESPACE)

        def key(turn):
            keys.set("changing", b"x" * (turn + 1))

        def artifact(turn):
            store.artifacts.put("t/w/changing", b"x" * (turn + 1))

        def new(turn):
            keys.set(f"new{turn}", b"x")

        def removed(turn):
            keys.delete(f"new{turn}")

        key(0)
        artifact(0)
        a_key, an_artifact = f"{state}/changing", f"{folder}/changing"
        kinds = {
            "a key's content": (key, lambda turn: _read(a_key)),
            "a key's size": (key, lambda turn: _size(a_key)),
            "an artifact's content": (artifact, lambda turn: _read(an_artifact)),
            "an artifact's size": (artifact, lambda turn: _size(an_artifact)),
            "a new key": (new, lambda turn: _size(f"{state}/new{turn}")),
            "a removed key": (removed, lambda turn: _size(f"{state}/new{turn}")),
        }
        times = {}
        for label, (change, question) in kinds.items():
            times[label] = [_time(change, question, turn + 1) for turn in range(int(turns))]
    return times


def _time(change, question, turn):
    question(turn)
    time.sleep(random.uniform(0, 0.02))  # whatever has a period of its own is met anywhere in it
    before = question(turn)
    change(turn)
    began = time.perf_counter()
    while question(turn) == before:
        if time.perf_counter() - began > DEADLINE_SECONDS:
            return DEADLINE_SECONDS * 1e3
        time.sleep(0.0001)
    return (time.perf_counter() - began) * 1e3


def main():
    what, *arguments = sys.argv[1:]
    if what == "write":
        write(*arguments)
    else:
        sys.stdout.write(json.dumps(look(*arguments)))


if __name__ == "__main__":
    main()
