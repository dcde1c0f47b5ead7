"""The daemon and the mount process that it starts, watches and ends."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import kvstate
from kvstate.store import open_store
from tests.harness import fuse_or_skip, wait_for
from tests.integration.daemons import DaemonProcess, mount_pids, mounts_on

pytestmark = pytest.mark.fuse


@pytest.fixture
def mountpoint(tmp_path):
    fuse_or_skip()
    folder = tmp_path / "mnt"
    folder.mkdir()
    return folder


@pytest.fixture
def daemon(tmp_path, mountpoint):
    process = DaemonProcess(tmp_path, mount=mountpoint)
    yield process
    process.end()


def listing(folder):
    """List a folder; None while it cannot be."""
    with contextlib.suppress(OSError):
        return {path.name for path in folder.iterdir()}
    return None


def test_ready_is_said_when_the_mount_answers(daemon, mountpoint):
    daemon.start()

    assert f"mounted on {mountpoint}" in daemon.said()
    assert {"hot", "warm", "cold", "all", "state"} <= listing(mountpoint)


def test_what_one_door_writes_the_other_shows(daemon, mountpoint):
    daemon.start()
    with daemon.connect() as store:
        store.namespace("ns").set("key", "value")
        store.artifacts.put("acme/weekly/report.md", b"# Report")

        (mountpoint / "hot/acme/weekly/other.md").write_bytes(b"# Other")

        assert (mountpoint / "state/ns/key").read_bytes().startswith(b"value")
        assert (mountpoint / "hot/acme/weekly/report.md").read_bytes() == b"# Report"
        assert store.artifacts.get("acme/weekly/other.md") == b"# Other"


def test_sigterm_while_files_are_written_unmounts_and_loses_no_closed_file(daemon, mountpoint):
    daemon.start()
    (mountpoint / "hot/acme/weekly").mkdir(parents=True)
    closed = []
    stopping = threading.Event()

    def write(number):
        try:
            for count in range(10_000):
                name = f"{number}-{count}"
                with (mountpoint / "hot/acme/weekly" / name).open("wb") as file:
                    file.write(name.encode() * 100)
                closed.append(name)
        except OSError:
            assert stopping.is_set()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(closed) > 50, what="some files")
    stopping.set()

    began = time.monotonic()
    status = daemon.stop()
    took = time.monotonic() - began
    for thread in threads:
        thread.join()

    assert status == 0, daemon.said()
    assert took < 20
    assert not mounts_on(mountpoint)
    assert mount_pids(daemon.store) == []
    with open_store(daemon.store) as store:
        for name in closed:
            assert store.artifacts.get(f"acme/weekly/{name}") == name.encode() * 100
        assert store.check(verify=True).clean


def test_a_mount_process_that_is_killed_is_followed_by_another(daemon, mountpoint):
    daemon.start()
    with daemon.connect() as store:
        store.artifacts.put("acme/weekly/report.md", b"# Report")
    (first,) = mount_pids(daemon.store)

    os.kill(first, signal.SIGKILL)

    # The worker of the one that was killed may answer for a moment longer.
    wait_for(lambda: mount_pids(daemon.store) not in ([], [first]))
    wait_for(lambda: listing(mountpoint / "hot/acme/weekly") == {"report.md"})
    assert (mountpoint / "hot/acme/weekly/report.md").read_bytes() == b"# Report"
    assert daemon.stop() == 0
    assert not mounts_on(mountpoint)


def test_a_killed_daemon_leaves_the_mount_alive_and_the_next_takes_over(daemon, mountpoint):
    daemon.start()
    with daemon.connect() as store:
        store.artifacts.put("acme/weekly/report.md", b"# Report")
    first = mount_pids(daemon.store)
    daemon.kill()
    assert (mountpoint / "hot/acme/weekly/report.md").read_bytes() == b"# Report"

    daemon.start()

    assert (mountpoint / "hot/acme/weekly/report.md").read_bytes() == b"# Report"
    wait_for(lambda: not set(first) & set(mount_pids(daemon.store)), what="the old process to end")
    assert daemon.stop() == 0
    assert not mounts_on(mountpoint)


def test_a_stale_mount_point_is_healed_at_the_start(daemon, mountpoint):
    daemon.start()
    (pid,) = mount_pids(daemon.store)
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: mount_pids(daemon.store) == [])
    with pytest.raises(OSError, match="onnect") as caught:
        next(mountpoint.iterdir())
    assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED}

    began = time.monotonic()
    daemon.start()

    assert time.monotonic() - began < 20
    assert "hot" in listing(mountpoint)


@pytest.mark.parametrize("what", ["missing", "full", "file"])
def test_a_mount_point_that_is_no_empty_folder_is_refused(daemon, mountpoint, what):
    if what == "full":
        (mountpoint / "precious").write_text("mine")
    else:
        mountpoint.rmdir()
    if what == "file":
        mountpoint.write_text("mine")

    status = daemon.begin().process.wait(30)

    assert status == 2
    assert "mount point" in daemon.said()
    assert "Traceback" not in daemon.said()
    assert not daemon.socket.exists()
    assert not (daemon.store / "kvstated.pid").exists()


def test_a_mount_point_inside_the_store_is_refused(daemon, tmp_path):
    inside = daemon.store / "mnt"
    inside.mkdir(parents=True)
    daemon.options = ["--mount", str(inside)]

    assert daemon.begin().process.wait(30) == 2
    assert "mount point" in daemon.said()


def test_sigterm_while_a_file_is_open_in_the_mount_still_unmounts(daemon, mountpoint):
    daemon.start()
    (mountpoint / "hot/acme/weekly").mkdir(parents=True)
    with contextlib.suppress(OSError), (mountpoint / "hot/acme/weekly/x").open("wb") as file:
        file.write(b"half")
        inside = subprocess.Popen(["sleep", "60"], cwd=mountpoint)
        try:
            assert daemon.stop() == 0
            assert not mounts_on(mountpoint)
        finally:
            inside.kill()
            inside.wait()


def test_a_store_that_somebody_else_has_mounted_there_stays_mounted(daemon, mountpoint, tmp_path):
    mount = [sys.executable, "-m", "kvstatefs", str(daemon.store), str(mountpoint)]
    subprocess.run(mount, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        daemon.begin()
        status = daemon.process.wait(30)

        assert status == 2
        assert "this store is mounted there already" in daemon.said()
        assert "hot" in listing(mountpoint)
    finally:
        subprocess.run(["fusermount", "-u", "-z", str(mountpoint)], check=True)


def test_two_daemons_do_not_share_a_mount_point_by_accident(daemon, mountpoint, tmp_path):
    daemon.start()
    (tmp_path / "b").mkdir()
    second = DaemonProcess(tmp_path / "b", mount=mountpoint)
    try:
        second.begin()
        status = second.process.wait(30)
    finally:
        second.mount = None
        second.end()

    assert status == 2
    assert "hot" in listing(mountpoint)
    with daemon.connect() as store:
        assert isinstance(store, kvstate.RemoteStore)
