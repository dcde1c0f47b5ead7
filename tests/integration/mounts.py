"""A store mounted by a process of its own, for tests: started, waited for, always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import kvstate
from tests.harness import wait_for

ANSWER_SECONDS = 20


def parts_of(folder):
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def mount_lines(folder):
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.split(" ")[4] == str(folder)]


class MountProcess:
    """``python -m kvstatefs STORE MOUNTPOINT -f``."""

    def __init__(self, folder) -> None:
        self.store_path = folder / "store"
        self.path = folder / "mnt"
        self.path.mkdir()
        self.log_path = folder / "mount.log"
        self.process = None

    def start(self, *options):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*options), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self.answers, ANSWER_SECONDS, "the mount to answer")
        return self

    def command(self, *options):
        command = [sys.executable, "-m", "kvstatefs"]
        return [*command, str(self.store_path), str(self.path), "-f", *options]

    def answers(self):
        assert self.process.poll() is None, self.log()
        return "hot" in parts_of(self.path)

    def log(self):
        return self.log_path.read_text(encoding="utf-8")

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def end(self):
        """Unmount, end the process, and see that nothing is left."""
        while mount_lines(self.path):
            subprocess.run(["fusermount", "-u", "-z", str(self.path)], check=True)
        if self.process is not None and self.process.poll() is None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def opened_store(self):
        return kvstate.open(self.store_path)

    def problems(self):
        with self.opened_store() as store:
            return list(store.check(verify=True).problems)


def run(*command, cwd=None, code=0, errors=False):
    """Run a tool; give what it said, or (``errors``) the text of what it complained about."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == code, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stderr.decode() if errors else done.stdout


def shell(text, cwd=None, code=0):
    """Run a line of shell."""
    return run("bash", "-c", text, cwd=cwd, code=code)
