"""The folder to mount on: checked, claimed, healed when a dead mount lies on it, and left again.

Nothing here unmounts what is alive and somebody else's. What is mounted is read from
/proc/self/mountinfo, which answers also when the mount does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.errors import InvalidConfig, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "KIND",
    "Mount",
    "check",
    "claimed",
    "heal",
    "is_dead",
    "resolved",
    "top_mount",
    "unmount",
    "unmount_ours",
]

KIND: Final = "fuse.kvstatefs"
_DETACH: Final = 2  # MNT_DETACH of umount2(2)
_NO_FOLLOW: Final = 8  # UMOUNT_NOFOLLOW
_STACKED_MAX: Final = 64
_LISTING_SECONDS: Final = 10.0
_LOCK_SECONDS: Final = 20.0
_DEAD: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo: device (``major:minor``), type, source."""

    device: str
    kind: str
    source: str


def resolved(mountpoint: Path) -> Path:
    """Resolve links without asking what is mounted there, which may not answer."""
    with contextlib.suppress(OSError):
        return Path(os.path.realpath(mountpoint.parent / mountpoint.readlink()))
    return Path(os.path.realpath(mountpoint.parent)) / mountpoint.name


def top_mount(mountpoint: Path) -> Mount | None:
    """Give what is mounted on exactly this folder, the uppermost; None if nothing is."""
    wanted, found = os.fsencode(resolved(mountpoint)), None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, rest = line.partition(b" - ")
        words = fields.split(b" ")
        if _unescaped(words[4]) == wanted:
            kind, source = rest.split(b" ")[:2]
            found = Mount(words[2].decode(), os.fsdecode(kind), os.fsdecode(_unescaped(source)))
    return found


def _unescaped(path: bytes) -> bytes:
    # proc(5): space, tab, newline and backslash are written as octal numbers.
    for code, character in ((rb"\040", b" "), (rb"\011", b"\t"), (rb"\012", b"\n")):
        path = path.replace(code, character)
    return path.replace(rb"\134", b"\\")


def is_dead(mountpoint: Path) -> bool:
    """Whether a mount lies here whose process is gone. A listing says so; a `stat` may not.

    `Unavailable` if a mount of ours does not answer at all.
    """
    mount = top_mount(mountpoint)
    if mount is None or mount.kind != KIND:
        return _listing_error(mountpoint) in _DEAD
    answers: list[int] = []
    # A thread, since a mount that hangs would take whoever asks along.
    asking = threading.Thread(
        target=lambda: answers.append(_listing_error(mountpoint)), daemon=True
    )
    asking.start()
    asking.join(_LISTING_SECONDS)
    if not answers:
        raise Unavailable(
            f"mount point {str(mountpoint)!r}",
            f"what is mounted there does not answer: `umount -f {mountpoint}` as root ends it",
        )
    return answers[0] in _DEAD


def _listing_error(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def unmount(mountpoint: Path, *, lazily: bool = True) -> bool:
    """Unmount what is uppermost here; lazily, what is open stays open. Say whether it worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _NO_FOLLOW | (_DETACH if lazily else 0)
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return True
    if ctypes.get_errno() != errno.EPERM:
        return False
    import subprocess  # noqa: PLC0415  (the supervisor stays small, and root needs none)

    for command in ("fusermount3", "fusermount"):
        options = ["-u", "-z"] if lazily else ["-u"]
        try:
            done = subprocess.run(  # noqa: S603  (fixed words and an absolute path)
                [command, *options, "--", str(mountpoint)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            continue
        return done.returncode == 0
    return False


def unmount_ours(mountpoint: Path, device: str) -> str:
    """Unmount what was mounted here with this device, and nothing else.

    Say how it went: ``done``, ``busy`` (it is gone from here, but is still in use), ``gone``
    (something else, or nothing, is mounted here) or ``failed``.
    """
    mount = top_mount(mountpoint)
    if mount is None or mount.device != device:
        return "gone"
    if unmount(mountpoint, lazily=False):
        return "done"
    return "busy" if unmount(mountpoint) else "failed"


def heal(mountpoint: Path) -> bool:
    """Unmount what a dead process left here; say whether there was anything."""
    healed = False
    for _ in range(_STACKED_MAX):
        if not is_dead(mountpoint):
            return healed
        if not unmount(mountpoint):
            break
        healed = True
    raise Unavailable(
        f"mount point {str(mountpoint)!r}",
        "a dead mount lies on it and cannot be unmounted: try `fusermount -u -z` as its owner",
    )


def check(mountpoint: Path, store: Path) -> None:
    """Raise `InvalidConfig` unless this is an empty folder that nothing is mounted on."""
    what = f"mount point {str(mountpoint)!r}"
    mount = top_mount(mountpoint)
    if mount is not None and mount.kind == KIND:
        raise InvalidConfig(what, "a store is mounted there already")
    try:
        if not mountpoint.is_dir():
            why = (
                "it is not a folder" if mountpoint.exists() else "there is no such folder: make it"
            )
            raise InvalidConfig(what, why)
        if next(mountpoint.iterdir(), None) is not None:
            raise InvalidConfig(what, "it is not empty: choose an empty folder")
    except OSError as error:
        raise InvalidConfig(what, error.strerror or str(error)) from None
    if store == mountpoint or mountpoint in store.parents or store in mountpoint.parents:
        raise InvalidConfig(what, "store and mount point must not lie in one another")


@contextlib.contextmanager
def claimed(mountpoint: Path, store: Path) -> Iterator[None]:
    """Heal and check the folder while nobody else mounts on it; mount inside.

    Until here a dead mount stays: who writes where a mount was finds an error, and not an ordinary
    folder that would keep what is written from the store.
    """
    heal(mountpoint)
    check(mountpoint, store)
    try:
        folder = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidConfig(
            f"mount point {str(mountpoint)!r}", os.strerror(error.errno or 0)
        ) from None
    try:
        _lock(folder, mountpoint)
        check(mountpoint, store)  # somebody may have mounted while we waited
        yield
    finally:
        os.close(folder)


def _lock(folder: int, mountpoint: Path) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InvalidConfig(
                    f"mount point {str(mountpoint)!r}", "another process keeps it locked"
                ) from None
            time.sleep(0.02)
        else:
            return
