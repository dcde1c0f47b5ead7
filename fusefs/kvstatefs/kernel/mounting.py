"""Mounting without libfuse: mount(2) where we may, else the set-user-id fusermount3.

The kernel wants an open /dev/fuse and its number among the options (Documentation/filesystems/
fuse.rst). Whoever may not mount asks fusermount3, which opens and mounts, and sends the descriptor
over the socket that `_FUSE_COMMFD` names.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from typing import TYPE_CHECKING, Final

from kvstate.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from kvstatefs.options import MountOptions

__all__ = ["DEVICE", "mount", "obstacle"]

DEVICE: Final = "/dev/fuse"
_HELPERS: Final = ("fusermount3", "fusermount")
_FLAGS: Final = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1024,
}
"""Words of ``-o`` that are flags of mount(2)."""
_FOR_KERNEL: Final = ("default_permissions", "allow_other")


def obstacle() -> str:
    """Say what keeps this process from mounting; empty when nothing is known to."""
    if not os.path.exists(DEVICE):  # noqa: PTH110  (no Path for one question)
        return f"there is no {DEVICE} (modprobe fuse; in a container: --device {DEVICE})"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} may not be opened"
    return ""


def mount(mountpoint: Path, options: MountOptions) -> int:
    """Mount on an absolute path and give the descriptor; `Unavailable` says why not.

    Nobody serves it yet: who asks anything of the mount waits until somebody reads the descriptor.
    """
    reason = obstacle()
    if reason:
        raise Unavailable(_what(mountpoint), reason)
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        _mount_directly(descriptor, mountpoint, options)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EPERM:
            return _mount_with_helper(mountpoint, options)
        raise Unavailable(_what(mountpoint), _explained(error)) from None
    return descriptor


def _mount_directly(descriptor: int, mountpoint: Path, options: MountOptions) -> None:
    data = [
        f"fd={descriptor}",
        "rootmode=40000",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        *(word for word in _FOR_KERNEL if word in options.words),
    ]
    flags = sum(_FLAGS.get(word, 0) for word in options.words)
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [
        os.fsencode(options.source),
        os.fsencode(mountpoint),
        f"fuse.{options.subtype}".encode(),
        ctypes.c_ulong(flags),
        ",".join(data).encode(),
    ]
    if libc.mount(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _explained(error: OSError) -> str:
    if error.errno == errno.ENODEV:
        return "this kernel has no FUSE (modprobe fuse)"
    return f"the kernel refused it: {error.strerror}"


def _mount_with_helper(mountpoint: Path, options: MountOptions) -> int:
    """Let fusermount3 mount: it is set-user-id root, and checks that we may mount there."""
    import subprocess  # noqa: PLC0415  (the supervisor stays small, and root needs none)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    said = "neither of them is installed (package fuse3)"
    with ours, theirs:
        for command in _HELPERS:
            try:
                done = subprocess.run(  # noqa: S603  (fixed words and an absolute path)
                    [command, "-o", ",".join(options.for_helper), "--", str(mountpoint)],
                    env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                )
            except FileNotFoundError:
                continue
            if done.returncode == 0:
                _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
                if descriptors:
                    os.set_inheritable(descriptors[0], False)
                    return descriptors[0]
            said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
            said = said or f"{command} ended with status {done.returncode}"
            break
    raise Unavailable(
        _what(mountpoint), f"mount(2) is for root, and fusermount3 did not help: {said}"
    )


def _what(mountpoint: Path) -> str:
    return f"mount on {str(mountpoint)!r}"
