"""The main job under fire: real files go in through the mount while its processes are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest

from kvstate.store import open_store
from tests.harness import fuse_or_skip, wait_for
from tests.integration.daemons import DaemonProcess, mount_pids, mounts_on

pytestmark = pytest.mark.fuse

LIBRARY = Path(sysconfig.get_path("stdlib"))
FILES_MAX = 600


@pytest.fixture
def daemon(tmp_path):
    fuse_or_skip()
    (tmp_path / "mnt").mkdir()
    process = DaemonProcess(tmp_path, mount=tmp_path / "mnt")
    yield process
    process.end()


def originals():
    """Files of the standard library, of all its folders: the same selection every time."""
    files = [f for f in LIBRARY.rglob("*.py") if "site-packages" not in f.parts and f.is_file()]
    return random.Random(1).sample(sorted(files), min(FILES_MAX, len(files)))


class Copier(threading.Thread):
    """Copies files one by one through the mount; remembers those whose close has returned."""

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.closed = []
        self.failures = 0

    def run(self):
        for source in originals():
            while not self._copy(source):
                self.failures += 1
                time.sleep(0.02)  # the mount is away: as long as it takes to come back

    def _copy(self, source):
        name = source.relative_to(LIBRARY)
        try:
            if not self.target.parents[2].joinpath("all").is_dir():
                return False  # as `cp -r` does, it makes nothing where no mount is
            (self.target / name).parent.mkdir(parents=True, exist_ok=True)
            with (self.target / name).open("wb") as file:
                file.write(source.read_bytes())
        except OSError:
            return False
        self.closed.append(name)
        return True


@pytest.mark.parametrize("seed", range(3))
def test_every_closed_file_is_there_whole_after_kills_of_mount_and_daemon(daemon, seed):
    rng = random.Random(seed)
    daemon.start()
    copier = Copier(daemon.mount / "hot/python/stdlib")
    copier.start()
    for _ in range(2):
        count = len(copier.closed)
        wait_for(lambda count=count: len(copier.closed) > count + 20, 60, "the copy to go on")
        time.sleep(rng.random() * 0.05)
        for pid in mount_pids(daemon.store):
            os.kill(pid, signal.SIGKILL)
    count = len(copier.closed)
    wait_for(lambda: len(copier.closed) > count + 20, 60, "the copy to go on by itself")
    time.sleep(rng.random() * 0.05)

    daemon.kill()
    for pid in mount_pids(daemon.store):
        os.kill(pid, signal.SIGKILL)
    closed = list(copier.closed)
    began = time.monotonic()
    daemon.start()
    took = time.monotonic() - began

    for name in closed:
        assert (daemon.mount / "hot/python/stdlib" / name).read_bytes() == (
            LIBRARY / name
        ).read_bytes()
    copier.join(120)
    assert len(copier.closed) == len(originals())
    command = [sys.executable, "-m", "kvstate.cli", "--socket", daemon.socket, "check", "--verify"]
    checked = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stdout[:6]) == (0, "clean:"), checked
    assert daemon.stop() == 0
    assert not mounts_on(daemon.mount)
    with open_store(daemon.store) as store:
        found = {a.artifact for a in store.artifacts.list("python/stdlib")}
        assert found == {str(name) for name in copier.closed}
    assert took < 20
