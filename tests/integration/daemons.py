"""A `kvstated` as a process, for the tests that need a real one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import kvstate
from tests.harness import wait_for

REPOSITORY = Path(__file__).parents[2]
ROOTS = [str(REPOSITORY), str(REPOSITORY / "fusefs"), str(REPOSITORY / "daemon")]


class DaemonProcess:
    """A daemon on a store below a test's folder; ended when the test is over."""

    def __init__(self, folder, *options, mount=None):
        self.store = folder / "store"
        self.socket = folder / "k.sock"
        self.mount = mount
        self.log = folder / "kvstated.log"
        self.options = [*map(str, options), *(["--mount", str(mount)] if mount else [])]
        self.process = None

    def begin(self, **environ):
        """Start it, and do not wait for anything."""
        environ["PYTHONPATH"] = os.pathsep.join([*ROOTS, os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "kvstated", "--store", self.store]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--socket", self.socket, *self.options],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environ},
            )
        return self

    def start(self, **environ):
        """Start it, and wait until it says that it is ready."""
        said = self.said().count("ready,")
        self.begin(**environ)
        wait_for(
            lambda: self.said().count("ready,") > said or self.process.poll() is not None,
            what="the daemon to be ready",
        )
        assert self.process.poll() is None, self.said()
        return self

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def connect(self):
        return kvstate.connect(self.socket)

    def stop(self, seconds=30.0):
        """Tell it to end, and give its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self):
        self.process.kill()
        self.process.wait(30)

    def end(self):
        """Leave nothing behind, whatever the test did."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.mount is not None and mounts_on(self.mount):
            subprocess.run(["fusermount", "-u", "-z", self.mount], check=False)
        end_mount_processes(self.store)

    # What the kernel knows of it

    def status(self, field):
        """Give a number of /proc/PID/status, as VmHWM (kB) or Threads."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

    def descriptors(self):
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def ticks(self):
        """Give the processor time that it has used, in hundredths of a second."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def raw(self):
        """Give a plain socket that is connected to it."""
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.settimeout(10)
        plain.connect(str(self.socket))
        return plain


def mount_pids(store):
    """Give the pids of the processes that mount this store."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"kvstatefs" in words and os.fsencode(store) in words:
                found.append(int(folder.name))
    return found


def end_mount_processes(store):
    for pid in mount_pids(store):
        os.kill(pid, signal.SIGKILL)


def mounts_on(path):
    """Say whether something is mounted exactly there."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(path) for line in lines)
