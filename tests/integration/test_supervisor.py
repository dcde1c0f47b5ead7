"""The supervisor with workers that are worse than ours: what it does when they die, hang or refuse.

The toy worker serves a few files; `toy_worker.py` says how badly it can be asked to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvstate.errors import Unavailable
from kvstatefs.kernel import control
from tests.harness import fuse_or_skip, wait_for
from tests.integration.mounts import mount_lines

pytestmark = pytest.mark.fuse

TOY = Path(__file__).with_name("toy_mount.py")
WAIT_SECONDS = 60
needs_resend = pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 9), reason="needs Linux 6.9"
)


class ToyMount:
    def __init__(self, folder):
        self.store = folder / "store"
        self.path = folder / "mnt"
        self.path.mkdir()
        self.first = folder / "first"
        self.log = folder / "log"
        self.process = None

    def begin(self, **environ):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, TOY, self.store, self.path],
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def start(self, **environ):
        self.begin(**environ)
        wait_for(lambda: "ready" in self.said(), WAIT_SECONDS, "the toy to be ready")
        return self

    def said(self):
        return self.log.read_text()

    def ended(self):
        return self.process.wait(WAIT_SECONDS)

    def ask(self):
        return control.ask(self.path, {"ask": "state"}, WAIT_SECONDS)

    def kill_worker(self):
        pid = self.ask()["worker"]
        os.kill(pid, signal.SIGKILL)
        return pid

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        while mount_lines(self.path):
            subprocess.run(["fusermount", "-u", "-z", str(self.path)], check=True)


@pytest.fixture
def toy(tmp_path):
    fuse_or_skip()
    mount = ToyMount(tmp_path)
    yield mount
    mount.end()


@contextlib.contextmanager
def opened(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):  # its mount may be gone
            os.close(descriptor)


def stands(pid):
    return Path(f"/proc/{pid}").exists()


def error_of(function):
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is what counts)
        function()
    return caught.value.errno


class TestTakingOver:
    @needs_resend
    def test_a_read_that_a_worker_died_with_is_answered_by_the_next(self, toy):
        toy.start(TOY_DIES="read", TOY_FIRST=str(toy.first))

        assert (toy.path / "file").read_bytes() == b"0123456789"

        assert "was ended by SIGKILL: the next one begins in 0 s" in toy.said()

    @needs_resend
    def test_a_file_that_is_open_stays_so(self, toy):
        toy.start()
        with opened(toy.path / "pid") as file:
            before = int(os.pread(file, 10, 0))

            toy.kill_worker()

            after = int(os.pread(file, 10, 0))
        assert before != after
        assert after == toy.ask()["worker"]

    @needs_resend
    def test_what_was_held_is_given_to_the_next(self, toy):
        toy.start()
        assert not (toy.path / "held-pipe").exists()

        toy.kill_worker()
        assert int((toy.path / "pid").read_bytes())

        assert (toy.path / "held-pipe").exists()
        assert not (toy.path / "held-dropped").exists()

    @needs_resend
    def test_the_next_does_not_wait_for_one_that_cannot_die_yet(self, toy):
        toy.start(TOY_FIRST=str(toy.first))
        making = threading.Thread(target=os.mkdir, args=(toy.path / "new",))
        making.start()
        wait_for(toy.first.exists, WAIT_SECONDS, "the worker to be stuck")
        stuck = toy.ask()["worker"]
        wait_for(lambda: "D" in states_of(stuck), WAIT_SECONDS, "the notice to wait")

        toy.kill_worker()
        making.join(WAIT_SECONDS)

        assert not making.is_alive()
        assert (toy.path / "pid").read_bytes().split() == [b"%d" % toy.ask()["worker"]]
        wait_for(lambda: not stands(stuck), WAIT_SECONDS, "the first worker to be reaped")

    def test_where_nobody_can_take_over_the_mount_is_made_anew(self, toy):
        toy.start(TOY_RESEND="0")
        with opened(toy.path / "file") as file:
            toy.kill_worker()

            wait_for(lambda: "begins in 0 s" in toy.said(), WAIT_SECONDS)
            assert error_of(lambda: os.pread(file, 10, 0)) in {
                errno.ENOTCONN,
                errno.ECONNABORTED,
                errno.EIO,
            }
        wait_for(lambda: answers(toy.path), WAIT_SECONDS, "the mount to be made anew")
        assert len(mount_lines(toy.path)) == 1

    def test_where_the_ledger_was_lost_the_mount_is_made_anew(self, toy):
        toy.start(TOY_FORGETS="1")

        toy.kill_worker()

        wait_for(lambda: "ended with status 4" in toy.said(), WAIT_SECONDS)
        wait_for(lambda: answers(toy.path), WAIT_SECONDS, "the mount to be made anew")
        assert len(mount_lines(toy.path)) == 1

    def test_a_store_that_was_moved_away_is_not_replaced_by_an_empty_one(self, toy):
        toy.start()
        toy.store.rename(toy.store.with_name("elsewhere"))

        toy.kill_worker()

        wait_for(lambda: "ended with status 1" in toy.said(), WAIT_SECONDS)
        assert not toy.store.exists()


def states_of(pid):
    """Give the states of a process's threads, as in proc(5): R, S, D, ..."""
    found = ""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
    return found


def answers(folder):
    with contextlib.suppress(OSError):
        return (folder / "file").read_bytes() == b"0123456789"
    return False


class TestGivingUp:
    def test_after_too_many_deaths_in_a_row_it_unmounts_and_says_so(self, toy):
        toy.begin(TOY_DIES="ready", TOY_STATUS="7")

        assert toy.ended() == 1

        assert "the worker ended with status 7, as did 10 before: giving up" in toy.said()
        assert mount_lines(toy.path) == []

    def test_a_first_worker_that_dies_before_the_mount_answers(self, toy):
        toy.begin(TOY_DIES="begin", TOY_STATUS="7")

        assert toy.ended() == 1

        assert "the worker ended with status 7 before the mount answered" in toy.said()
        assert mount_lines(toy.path) == []

    def test_a_first_worker_that_is_killed_in_the_middle_of_mounting(self, toy):
        toy.begin(TOY_DIES="init")
        wait_for(lambda: mount_lines(toy.path), WAIT_SECONDS, "the toy to be mounted")

        (worker,) = children_of(toy.process.pid)
        os.kill(worker, signal.SIGKILL)

        assert toy.ended() == 1
        assert "was ended by SIGKILL before the mount answered" in toy.said()
        assert mount_lines(toy.path) == []

    def test_a_killed_supervisor_takes_its_worker_along(self, toy):
        toy.start()
        worker = toy.ask()["worker"]

        toy.process.kill()
        toy.process.wait()

        wait_for(lambda: not stands(worker), WAIT_SECONDS, "the worker to end")
        assert error_of(lambda: next(toy.path.iterdir())) == errno.ENOTCONN


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class TestEnding:
    def test_a_worker_that_never_settles_is_ended(self, toy):
        toy.start(TOY_SETTLES="0")
        with opened(toy.path / "file"):
            toy.process.terminate()

            assert toy.ended() == 0

        assert "is busy: it is unmounted all the same" in toy.said()
        assert mount_lines(toy.path) == []

    def test_a_signal_before_the_mount_answers(self, toy):
        toy.begin()
        wait_for(lambda: toy.log.exists() and toy.said(), WAIT_SECONDS, "the supervisor to begin")

        toy.process.terminate()

        assert toy.ended() in {0, -signal.SIGTERM}
        assert mount_lines(toy.path) == []

    def test_an_unmount_while_no_worker_is_there(self, toy):
        toy.start(TOY_DIES="ready", TOY_FIRST=str(toy.first), TOY_STATUS="5")
        toy.store.rename(toy.store.with_name("elsewhere"))
        for _ in range(4):  # so that there is a pause before the next one
            with contextlib.suppress(Unavailable, ProcessLookupError, TypeError):
                toy.kill_worker()

        subprocess.run(["fusermount", "-u", "-z", str(toy.path)], check=True)

        assert toy.ended() in {0, 1}
        assert mount_lines(toy.path) == []

    def test_what_was_mounted_over_ours_stays(self, toy, tmp_path):
        toy.start()
        subprocess.run(["mount", "-t", "tmpfs", "over", str(toy.path)], check=True)
        try:
            toy.process.terminate()
            assert toy.ended() == 0

            assert [line.split(" ")[-3] for line in mount_lines(toy.path)] == [
                "fuse.kvstatefs",
                "tmpfs",
            ]
        finally:
            subprocess.run(["umount", str(toy.path)], check=True)


class TestUpgrading:
    def test_another_worker_goes_on(self, toy):
        toy.start()
        before = toy.ask()["worker"]

        said = control.upgrade(toy.path)

        assert said.startswith(f"{toy.path}: kvstatefs ")
        assert toy.ask()["worker"] != before
        assert answers(toy.path)

    def test_a_worker_may_refuse(self, toy):
        toy.start(TOY_UPGRADES="refuse")
        before = toy.ask()["worker"]

        with pytest.raises(Unavailable, match="the toy will not"):
            control.upgrade(toy.path)

        assert toy.ask()["worker"] == before

    def test_a_worker_that_does_not_answer_stays(self, toy):
        toy.start(TOY_UPGRADES="ignore")
        before = toy.ask()["worker"]

        with pytest.raises(Unavailable, match="did not make way in time"):
            control.upgrade(toy.path, 0.1)

        assert toy.ask()["worker"] == before
        assert answers(toy.path)

    def test_an_interpreter_without_the_program_is_not_kept(self, toy):
        toy.start()
        request = {"ask": "upgrade", "python": "/bin/false", "version": "2", "seconds": 10}

        answer = control.ask(toy.path, request, WAIT_SECONDS)

        assert "a worker ended with status 1" in answer["error"]
        assert toy.ask()["python"] == sys.executable
        wait_for(lambda: answers(toy.path), WAIT_SECONDS, "the mount to answer")

    @pytest.mark.parametrize(
        "request_text", [b"", b"{", b"[]", b'{"ask": "upgrade"}', b'{"ask": "else"}', b"\xff" * 9]
    )
    def test_a_request_that_is_none_changes_nothing(self, toy, request_text):
        toy.start()
        before = toy.ask()["worker"]
        device = control.mountpoints.top_mount(toy.path).device

        with control.socket.socket(control.socket.AF_UNIX, control.socket.SOCK_SEQPACKET) as odd:
            odd.connect(f"\0kvstatefs-{device}")
            odd.send(request_text)
            odd.settimeout(WAIT_SECONDS)
            odd.recv(1000)

        assert toy.ask()["worker"] == before
