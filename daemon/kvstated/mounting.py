"""The mount is a process of its own: started, watched, restarted and ended here.

It is started as ``python -m kvstatefs STORE MOUNTPOINT -f``, which opens the store for itself (or
has a worker of its own do so); what one does to itself leaves the other alive. A mount is believed
when the folder lies on another device than before *and* can be listed, since a dead one still looks
mounted.

A mount point that a dead process left behind (ENOTCONN), or that an earlier daemon's mount process
still serves, is unmounted lazily before ours is mounted over it: files that are open there stay so.
Which process that is says `MOUNT_FILE` in the store. A live mount that somebody else made stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvstate.errors import InvalidConfig, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Mount"]

READY_SECONDS: Final = 20.0
END_SECONDS: Final = 8.0
"""What the mount process has for bringing open files to an end."""
BACK_OFF_SECONDS: Final = (0.1, 30.0)
STEADY_SECONDS: Final = 60.0
"""A mount that lived this long starts the back-off anew."""
_DETACH: Final = 2  # MNT_DETACH of umount2(2)
_LOOK_SECONDS = 0.02
_OURS = "fuse.kvstatefs"
_WRONG_USAGE = 2
MOUNT_FILE: Final = "kvstated.mount"
"""In the store: pid and start of the mount process that a daemon started last."""

log = logging.getLogger(__name__)


class Mount:
    """Keeps the store mounted on a folder, from `start` to `stop`."""

    def __init__(self, store: Path, mountpoint: Path, *, options: str = "") -> None:
        self._store = store
        self._mountpoint = mountpoint
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="mount", daemon=True)

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Mount, and come back when it answers; `InvalidConfig` for a folder that cannot be used.

        ``cancelled`` is asked while it does not answer yet: whether to wait no longer.
        """
        self._mount(cancelled)
        self._thread.start()

    def stop(self, seconds: float = END_SECONDS) -> None:
        """Unmount, and end the process; what is busy is unmounted all the same."""
        self._stopping.set()
        with self._lock:
            process = self._process
        alive = process is not None and process.poll() is None
        device = _device_on(self._mountpoint) if alive else None
        if process is not None:
            _end(process, seconds)
        if self._thread.ident is not None:
            self._thread.join(seconds)  # it may be in the middle of mounting again
        if device is not None and _device_on(self._mountpoint) == device:
            unmount(self._mountpoint)
        if process is not None:
            _kill(process)
            _forget_process(self._store)

    def _mount(self, cancelled: Callable[[], bool]) -> None:
        if is_dead(self._mountpoint):
            # The new process unmounts it just before it mounts: until then, who writes gets an
            # error, and not an ordinary folder that would keep what is written from the store.
            device = self._mountpoint.parent.stat().st_dev
        else:
            heal(self._mountpoint, self._store)
            check_folder(self._mountpoint)
            device = self._mountpoint.stat().st_dev
        before = _device_on(self._mountpoint)
        command = [sys.executable, "-m", "kvstatefs", str(self._store), str(self._mountpoint)]
        process = subprocess.Popen(  # noqa: S603  (our own package, by its full path)
            [*command, "-f", *(["-o", self._options] if self._options else [])],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal is for the daemon alone
        )
        with self._lock:
            self._process = process
        _remember_process(self._store, process.pid)
        try:
            self._wait_until_mounted(process, device, cancelled)
        except BaseException:
            _kill(process)
            if is_ours(self._mountpoint, self._store) and _device_on(self._mountpoint) != before:
                unmount(self._mountpoint)
            raise

    def _wait_until_mounted(
        self, process: subprocess.Popen[bytes], device: int, cancelled: Callable[[], bool]
    ) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers(device):
            status = process.poll()
            if status is not None:
                why = f"its process ended with status {status}: see what it wrote above"
                if status == _WRONG_USAGE:
                    raise InvalidConfig(f"mount point {str(self._mountpoint)!r}", why)
                raise Unavailable(f"mount on {str(self._mountpoint)!r}", why)
            if time.monotonic() > deadline:
                why = f"it did not answer within {READY_SECONDS:g} s"
                raise Unavailable(f"mount on {str(self._mountpoint)!r}", why)
            if cancelled():
                raise Unavailable(f"mount on {str(self._mountpoint)!r}", "the daemon ends")
            time.sleep(_LOOK_SECONDS)

    def _answers(self, device: int) -> bool:
        try:
            return self._mountpoint.stat().st_dev != device and any(self._mountpoint.iterdir())
        except OSError:
            return False

    def _watch(self) -> None:
        """Mount again whenever the process has ended, later each time it does so quickly."""
        pause, longest = BACK_OFF_SECONDS
        begun = time.monotonic()
        while not self._stopping.is_set():
            assert self._process is not None
            status = self._process.wait()
            if self._stopping.is_set():
                return
            pause = BACK_OFF_SECONDS[0] if time.monotonic() - begun > STEADY_SECONDS else pause
            log.warning("the mount process ended with status %d: again in %.1f s", status, pause)
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, longest)
            begun = time.monotonic()
            try:
                self._mount(self._stopping.is_set)
                log.warning("mounted again on %s", self._mountpoint)
            except Exception as error:  # noqa: BLE001  (whatever it is: the store stays reachable)
                log.error("%s", error)  # noqa: TRY400  (the message says it)


def check_folder(mountpoint: Path) -> None:
    """Raise `InvalidConfig` unless the mount point is an empty folder."""
    what = f"mount point {str(mountpoint)!r}"
    try:
        first = next(mountpoint.iterdir(), None)
    except OSError as error:
        raise InvalidConfig(what, os.strerror(error.errno or 0)) from None
    if first is not None:
        raise InvalidConfig(what, f"the folder is not empty: it holds {first.name!r}")
    if not os.access(mountpoint, os.W_OK | os.X_OK):
        raise InvalidConfig(what, "the folder may not be written to")


def heal(mountpoint: Path, store: Path) -> None:
    """Unmount what a dead process, or an earlier daemon of this store, left on this folder.

    `InvalidConfig` if the store is mounted there by a live process that no daemon started.
    """
    for _ in range(8):  # mounts may lie on one another
        # What is known first: a mount that is stuck would not answer a listing.
        if not (is_ours(mountpoint, store) and _remembered(store)) and not is_dead(mountpoint):
            if is_ours(mountpoint, store):
                why = "this store is mounted there already, not by a daemon: unmount it first"
                raise InvalidConfig(f"mount point {str(mountpoint)!r}", why)
            return
        log.warning("unmounting what was left on %s", mountpoint)
        unmount(mountpoint)


def is_dead(mountpoint: Path) -> bool:
    """Say whether the folder is a mount whose process is gone."""
    try:
        next(mountpoint.iterdir(), None)
    except OSError as error:
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False


def _remember_process(store: Path, pid: int) -> None:
    with contextlib.suppress(OSError):
        (store / MOUNT_FILE).write_text(f"{pid} {_started(pid)}\n")


def _forget_process(store: Path) -> None:
    with contextlib.suppress(OSError):
        (store / MOUNT_FILE).unlink()


def _remembered(store: Path) -> bool:
    """Whether the mount process that a daemon of this store started is still alive."""
    with contextlib.suppress(OSError, ValueError):
        pid, started = (store / MOUNT_FILE).read_text().split()
        return bool(started) and started == _started(int(pid))
    return False


def _started(pid: int) -> str:
    """Give when a process began, in ticks (proc(5)): a number that comes back is another one."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _device_on(mountpoint: Path) -> str | None:
    """Give the device number of what is mounted on exactly this folder."""
    found = _line_of(mountpoint)
    return found and found.split(" ")[2]


def mounted(mountpoint: Path) -> tuple[str, str] | None:
    """Give type and source of what is mounted on exactly this folder; None if nothing is."""
    line = _line_of(mountpoint)
    if line is None:
        return None
    kind, source = line.partition(" - ")[2].split(" ")[:2]
    return kind, _unescaped(source)


def _line_of(mountpoint: Path) -> str | None:
    """Give the line of what is uppermost there; None if nothing is mounted."""
    wanted = _real_path(mountpoint)
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123
        for line in lines:
            if _unescaped(line.split(" ")[4]) == wanted:
                found = line  # the last one lies on top
    return found


def _real_path(mountpoint: Path) -> str:
    """Resolve links without asking what is mounted there, which may not answer."""
    with contextlib.suppress(OSError):
        return os.path.realpath(mountpoint.parent / mountpoint.readlink())
    return os.path.normpath(os.path.join(os.path.realpath(mountpoint.parent), mountpoint.name))  # noqa: PTH118


def _unescaped(path: str) -> str:
    # proc(5): space, tab, newline and backslash are written as octal numbers.
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def is_ours(mountpoint: Path, store: Path) -> bool:
    """Say whether this store is mounted on the folder, dead or alive."""
    return mounted(mountpoint) == (_OURS, str(store))


def unmount(mountpoint: Path) -> None:
    """Unmount lazily, as whoever may: open files stay usable, the name is free at once."""
    path = str(mountpoint)
    if ctypes.CDLL(None).umount2(os.fsencode(path), _DETACH) == 0:
        return
    for command in (
        ["fusermount3", "-u", "-z", "--", path],
        ["fusermount", "-u", "-z", "--", path],
        ["umount", "-l", "--", path],
    ):
        if shutil.which(command[0]) is None:
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, timeout=4, check=False)  # noqa: S603
            if done.returncode == 0:
                return
    log.error("%s could not be unmounted", path)


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(OSError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
