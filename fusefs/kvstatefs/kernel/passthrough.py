"""Handing open files over to the kernel, which then reads them without asking.

Linux 6.9 and later, and CAP_SYS_ADMIN for whoever registers a file. A file is handed over when it
is large, plain (not packed, not in the record file) and every byte of it was verified; that is
remembered, so the second open costs nothing. From then on the kernel reads it as it reads any file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvstatefs.kernel.known import Known
    from kvstatefs.nodes import Handle

__all__ = ["Passthrough"]

log = logging.getLogger("kvstatefs")

LARGE_BYTES: Final = 256 * 1024
"""Below this an open costs more than what it saves: the kernel's pages are as quick."""
_BACKING_OPEN: Final = 0x4010_E501  # _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE: Final = 0x4004_E502  # _IOW(229, 2, u32)
_MAP = struct.Struct("=iIQ")
_NUMBER = struct.Struct("=I")
_VERIFIED_MAX: Final = 65_536


class Passthrough:
    """The files that the kernel was given."""

    def __init__(self, fd: int, *, wanted: bool) -> None:
        self._fd = fd
        self.wanted = wanted
        self._works = False
        self._lock = threading.Lock()
        self._verified: OrderedDict[tuple[int, ...], None] = OrderedDict()

    def begin(self, *, offered: bool) -> None:
        """Take note whether the kernel does it; whether we may shows with the first file."""
        self._works = self.wanted and offered

    @property
    def works(self) -> bool:
        """Whether files are handed over, as far as is known."""
        return self._works

    def hand_over(self, known: Known, handle: Handle) -> int:
        """Give the kernel a file that may be read without us; 0 if it stays with us.

        Verifies every byte the first time: `Damaged` when one is wrong.
        """
        if not self._works or known.size < LARGE_BYTES:
            return 0
        reader = handle.file()
        if reader is None or reader.size != known.size:
            return 0
        status = os.fstat(reader.fd)
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if key not in self._verified:
            reader.verify_file()
            with self._lock:
                self._verified[key] = None
                while len(self._verified) > _VERIFIED_MAX:
                    self._verified.popitem(last=False)
        try:
            wanted = bytearray(_MAP.pack(reader.fd, 0, 0))
            backing: int = fcntl.ioctl(self._fd, _BACKING_OPEN, wanted, True)
        except OSError as error:
            self._works = False
            log.info("large files are read through this process: %s", error)
            return 0
        return backing

    def take_back(self, backing: int) -> None:
        """Let the kernel let go of a file once those who read it are done."""
        if backing > 0:
            try:
                fcntl.ioctl(self._fd, _BACKING_CLOSE, _NUMBER.pack(backing))
            except OSError as error:
                log.debug("a file that was handed over: %s", error)
