"""The folder to mount on: checked, and healed when a dead mount still lies on it."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from typing import TYPE_CHECKING

from kvstate.errors import InvalidConfig, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check", "heal", "is_dead", "unmount"]

_DETACH = 2  # MNT_DETACH of umount2(2)
_STACKED_MAX = 64


def is_dead(mountpoint: Path) -> bool:
    """Whether a mount lies here whose process is gone. A listing says so; a `stat` may not."""
    try:
        with os.scandir(mountpoint) as entries:
            next(entries, None)
    except OSError as error:
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False


def unmount(mountpoint: Path) -> bool:
    """Unmount, even if it is busy: what is open stays open. Say whether it worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), _DETACH) == 0:
        return True
    for command in ("fusermount", "fusermount3"):
        try:
            done = subprocess.run(  # noqa: S603  (fixed words and an absolute path)
                [command, "-u", "-z", "--", str(mountpoint)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            continue
        return done.returncode == 0
    return False


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
    try:
        if not mountpoint.is_dir():
            why = (
                "it is not a folder" if mountpoint.exists() else "there is no such folder: make it"
            )
            raise InvalidConfig(what, why)
        if os.path.ismount(mountpoint) and _is_ours(mountpoint):
            raise InvalidConfig(what, "a store is mounted there already")
        if next(mountpoint.iterdir(), None) is not None:
            raise InvalidConfig(what, "it is not empty: choose an empty folder")
    except OSError as error:
        raise InvalidConfig(what, error.strerror or str(error)) from None
    if store == mountpoint or mountpoint in store.parents or store in mountpoint.parents:
        raise InvalidConfig(what, "store and mount point must not lie in one another")


def _is_ours(mountpoint: Path) -> bool:
    return (mountpoint / ".kvstate").is_dir()
