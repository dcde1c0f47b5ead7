"""A store mounted by a process of its own, for tests: started, waited for, always ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import kvstate
from kvstate.errors import InvalidConfig
from kvstatefs.options import parse_options
from tests.harness import wait_for

ANSWER_SECONDS = 30


def can_choose():
    """Whether the command lets its caller choose; else there is only the one."""
    with contextlib.suppress(InvalidConfig):
        parse_options(["adapter=kernel"], "store")
        return find_spec("kvstatefs.kernel.serving") is not None
    return False


ADAPTERS = ("kernel", "fusepy") if can_choose() else ("fusepy",)
"""What every test that takes the `adapter` fixture runs on, one after the other."""


def choice_of(adapter):
    """The command's words for an adapter; None leaves the choice to the command."""
    return ["-o", f"adapter={adapter}"] if adapter is not None and can_choose() else []


def parts_of(folder):
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def mount_lines(folder):
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.split(" ")[4] == str(folder)]


class MountProcess:
    """``python -m kvstatefs STORE MOUNTPOINT -f -o adapter=ADAPTER``."""

    def __init__(self, folder, adapter=None) -> None:
        self.adapter = adapter
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
        chosen = choice_of(self.adapter)
        return [*command, str(self.store_path), str(self.path), "-f", *chosen, *options]

    def answers(self):
        assert self.process.poll() is None, self.log()
        return "hot" in parts_of(self.path)

    def log(self):
        return self.log_path.read_text(encoding="utf-8")

    def kill(self):
        self.process.kill()
        self.process.wait(30)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def end(self):
        """Unmount, end the process, and see that nothing is left."""
        while mount_lines(self.path):
            subprocess.run(["fusermount", "-u", "-z", str(self.path)], check=True)
        if self.process is not None and self.process.poll() is None:
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def opened_store(self):
        return kvstate.open(self.store_path)

    def problems(self):
        with self.opened_store() as store:
            return list(store.check(verify=True).problems)


def mounted_in(folder, adapter):
    """Mount a store in a folder for a fixture; check it to the last byte afterwards."""
    folder.mkdir(exist_ok=True)
    process = MountProcess(folder, adapter)
    try:
        process.start()
        yield process
    finally:
        process.end()
    problems = process.problems()
    assert problems == [], problems


def run(*command, cwd=None, code=0, errors=False, environ=None):
    """Run a tool; give what it said, or (``errors``) the text of what it complained about."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(environ or {})},
    )
    assert done.returncode == code, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stderr.decode() if errors else done.stdout


def shell(text, cwd=None, code=0, environ=None):
    """Run a line of shell."""
    return run("bash", "-c", text, cwd=cwd, code=code, environ=environ)
