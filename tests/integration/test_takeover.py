"""A mount outlives the process that serves it: readers and handles over kills and upgrades."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import signal
import subprocess
import sys
import threading

import pytest

from kvstatefs.kernel import control
from kvstatefs.kernel.mounting import obstacle
from tests.harness import fuse_or_skip, wait_for
from tests.integration.mounts import MountProcess, mount_lines, run

RELEASE = tuple(map(int, platform.release().split(".")[:2]))
pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(RELEASE < (6, 9), reason="needs Linux 6.9"),
    pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "-"),
]
WAIT_SECONDS = 60
KILLS = 8


@pytest.fixture
def mount(tmp_path):
    fuse_or_skip()
    process = MountProcess(tmp_path, "kernel")
    process.start()
    yield process
    process.end()
    assert process.problems() == []


@pytest.fixture
def folder(mount):
    made = mount.path / "hot/acme/weekly"
    made.mkdir(parents=True)
    return made


def state_of(mount):
    return control.ask(mount.path, {"ask": "state"}, WAIT_SECONDS)


def kill_worker(mount):
    """Kill the worker; come back when the next one serves."""
    state = wait_for(lambda: (found := state_of(mount))["ready"] and found, WAIT_SECONDS)
    os.kill(state["worker"], signal.SIGKILL)
    wait_for(
        lambda: (found := state_of(mount))["ready"] and found["worker"] != state["worker"],
        WAIT_SECONDS,
        "the next worker",
    )


def upgrade(mount, *options):
    return subprocess.run(
        [sys.executable, "-m", "kvstatefs", "--upgrade", mount.path, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class TestKilled:
    def test_readers_notice_a_pause_and_nothing_else(self, mount, folder):
        files = {f"{size}": os.urandom(size) for size in (0, 10, 5000, 300_000, 2_000_000)}
        for name, data in files.items():
            (folder / name).write_bytes(data)
        stopping, problems, rounds = threading.Event(), [], []

        def read():
            try:
                while not stopping.is_set():
                    wrong = [n for n, data in files.items() if (folder / n).read_bytes() != data]
                    names = sorted(path.name for path in folder.iterdir())
                    assert (wrong, names) == ([], sorted(files))
                    rounds.append(1)
            except (OSError, AssertionError) as error:
                problems.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for _ in range(KILLS):
            kill_worker(mount)
        before = len(rounds)
        wait_for(lambda: len(rounds) > before or problems, WAIT_SECONDS, "another round")
        stopping.set()
        for reader in readers:
            reader.join(WAIT_SECONDS)

        assert problems == []
        assert len(mount_lines(mount.path)) == 1

    def test_a_file_that_is_open_keeps_what_it_opened(self, mount, folder):
        contents = [b"small", os.urandom(1_000_000)]
        for number, data in enumerate(contents):
            (folder / str(number)).write_bytes(data)
        opened = [(folder / str(number)).open("rb") for number in range(2)]
        for file in opened:
            file.read(2)
        for number in range(2):
            (folder / f"{number}.new").write_bytes(b"other")
            (folder / f"{number}.new").rename(folder / str(number))

        kill_worker(mount)
        kill_worker(mount)

        for file, data in zip(opened, contents, strict=True):
            file.seek(0)
            assert file.read() == data
            file.close()
        assert (folder / "0").read_bytes() == b"other"

    def test_a_file_being_written_is_stored_whole_or_its_close_fails(self, mount, folder):
        data = os.urandom(3_000_000)
        failed = 0
        for number in range(4):
            try:
                with (folder / str(number)).open("wb") as file:
                    file.write(data[: len(data) // 2])
                    file.flush()
                    kill_worker(mount)
                    file.write(data[len(data) // 2 :])
            except OSError:
                failed += 1
                continue
            assert hashlib.sha256((folder / str(number)).read_bytes()).digest() == (
                hashlib.sha256(data).digest()
            )
        stored = [path for path in folder.iterdir() if path.stat().st_size]
        assert len(stored) + failed == 4
        assert all(path.read_bytes() == data for path in stored)

    def test_what_was_closed_is_there_after_each_kill(self, mount, folder):
        closed, stopping = {}, threading.Event()

        def write():
            for number in range(100_000):
                if stopping.is_set():
                    return
                data = os.urandom(3000 if number % 3 else 100_000)
                with contextlib.suppress(OSError):
                    (folder / str(number)).write_bytes(data)
                    closed[number] = data

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(KILLS):
            begun = len(closed)
            wait_for(lambda begun=begun: len(closed) > begun + 5, WAIT_SECONDS, "some files")
            kill_worker(mount)
        stopping.set()
        writer.join(WAIT_SECONDS)

        assert not writer.is_alive()
        wrong = [n for n, data in closed.items() if (folder / str(n)).read_bytes() != data]
        assert wrong == []

    def test_it_still_ends_with_status_0(self, mount):
        kill_worker(mount)

        assert mount.terminate() == 0
        assert mount_lines(mount.path) == []

    def test_an_unmount_from_outside_still_ends_it_with_status_0(self, mount):
        kill_worker(mount)

        run("fusermount", "-u", mount.path)

        assert mount.process.wait(WAIT_SECONDS) == 0


class TestUpgrade:
    def test_another_process_goes_on_and_says_from_what_to_what(self, mount, folder):
        (folder / "report.md").write_bytes(b"text")
        before = state_of(mount)
        with (folder / "report.md").open("rb") as file:
            done = upgrade(mount)

            assert file.read() == b"text"
        version = before["version"]
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{mount.path}: kvstatefs {version} -> {version}\n"
        assert state_of(mount)["worker"] != before["worker"]
        assert state_of(mount)["supervisor"] == mount.process.pid

    def test_it_waits_for_what_is_being_written(self, mount, folder):
        file = (folder / "report.md").open("wb")
        file.write(b"text")
        file.flush()
        before = state_of(mount)["worker"]
        upgrading = threading.Thread(target=upgrade, args=(mount,))
        upgrading.start()

        wait_for(lambda: upgrading.is_alive() and (mount.path / "hot").exists(), WAIT_SECONDS)
        file.close()
        upgrading.join(WAIT_SECONDS)

        assert state_of(mount)["worker"] != before
        assert (folder / "report.md").read_bytes() == b"text"

    def test_it_is_refused_while_a_file_stays_open_for_writing(self, mount, folder):
        before = state_of(mount)["worker"]
        with (folder / "report.md").open("wb") as file:
            file.write(b"text")
            request = {"ask": "upgrade", "python": sys.executable, "seconds": 0.2}

            answer = control.ask(mount.path, request, WAIT_SECONDS)

        assert "open for writing" in answer["error"]
        assert state_of(mount)["worker"] == before
        assert (folder / "report.md").read_bytes() == b"text"

    def test_a_folder_that_nothing_is_mounted_on(self, mount, tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "kvstatefs", "--upgrade", tmp_path],
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.returncode == 2
        assert "no store is mounted there" in done.stderr


class TestSecondStart:
    def test_it_is_refused_and_the_first_goes_on(self, mount, folder, tmp_path):
        (folder / "report.md").write_bytes(b"text")

        for store in (mount.store_path, tmp_path / "other"):
            done = subprocess.run(
                [sys.executable, "-m", "kvstatefs", store, mount.path],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 2
            assert "a store is mounted there already" in done.stderr

        assert (folder / "report.md").read_bytes() == b"text"
        assert len(mount_lines(mount.path)) == 1

    def test_two_at_once_leave_one_mount(self, tmp_path):
        fuse_or_skip()
        (tmp_path / "here").mkdir()
        commands = [
            [sys.executable, "-m", "kvstatefs", tmp_path / f"store{n}", tmp_path / "here", "-f"]
            for n in range(3)
        ]
        logs = [(tmp_path / f"log{n}").open("wb") for n in range(3)]
        started = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
            for command, log in zip(commands, logs, strict=True)
        ]
        try:

            def ended():
                return [each for each in started if each.poll() is not None]

            wait_for(lambda: len(ended()) == 2, WAIT_SECONDS, "two of them to be refused")

            assert [each.returncode for each in ended()] == [2, 2]
            assert len(mount_lines(tmp_path / "here")) == 1
            wait_for((tmp_path / "here/hot").is_dir, WAIT_SECONDS)
        finally:
            for each, log in zip(started, logs, strict=True):
                if each.poll() is None:
                    each.terminate()
                each.wait(WAIT_SECONDS)
                log.close()
        assert mount_lines(tmp_path / "here") == []
