"""The loop that feeds requests to libfuse, in Python's own threads.

libfuse 2's own loop calls Python from threads that Python does not know: each call makes and frees
a thread state, and several threads wake up for what one can do. Here one thread at a time, the
leader, reads a request and answers it before it reads the next. An operation that may have to wait
for a disk first steps aside, and another thread leads on. So what is quick is as quick as in one
thread, and what is slow holds nobody up.

Readers open with FOPEN_NOFLUSH (Linux 5.16), which libfuse 2 does not know: the answer to an `open`
goes through a channel of ours that sets it, and the close of a reader then asks nothing.

This knows how requests and answers begin (`linux/fuse.h`), and nothing of files.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import sys
import threading
from typing import TYPE_CHECKING, Final

from kvstatefs.errnos import errno_of
from kvstatefs.open_nodes import OpenNodes, packed_attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstatefs.nodes import Attributes

__all__ = ["Session", "packed_open_flags"]

_THREADS: Final = 24
_GETATTR: Final = 3
_SETATTR: Final = 4
_OPEN: Final = 14
_INIT: Final = 26
_RELEASE: Final = 18
_CREATE: Final = 35
_OPENING: Final = frozenset({_OPEN, _CREATE})
_ASKING: Final = frozenset({_GETATTR, _SETATTR})
_SIZE_CHANGES: Final = 1 << 3  # FATTR_SIZE of setattr's first word

_REQUEST = struct.Struct("=IIQQ")  # length, code, unique, node; 16 bytes more; the body at 40
_ANSWER = struct.Struct("=IiQ")  # length, -errno, unique
_DONE: Final = struct.pack("=Ii", 16, 0)
_OPENED = struct.Struct("=Q")  # handle (8), flags (4), padding (4)
_OPENED_BYTES: Final = 16
_ENTRY_BYTES: Final = 128
_FLAGS = struct.Struct("=II")
_IOVEC = struct.Struct("@PN")
_IOVECS = struct.Struct("@PNPN")
_string_at = ctypes.string_at


def packed_open_flags(*, direct: bool, keep: bool, reads: bool) -> bytes:
    """Give the flags of an answer to `open`: FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH."""
    return _FLAGS.pack(direct << 0 | keep << 1 | reads << 5, 0)


_Pointer = ctypes.c_void_p
_Send = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Pointer, ctypes.c_size_t)
_Destroy = ctypes.CFUNCTYPE(None, _Pointer)


class _ChannelOperations(ctypes.Structure):
    """libfuse's ``struct fuse_chan_ops``."""

    _fields_ = (("receive", _Pointer), ("send", _Pointer), ("destroy", _Pointer))


class _Turn(threading.local):
    """Whether this thread leads."""

    leads = False


class Session:
    """Reads requests of a mount and hands them to libfuse."""

    def __init__(
        self,
        library: ctypes.CDLL,
        attributes: Callable[[int], Attributes],
        release: Callable[[int], bool],
    ) -> None:
        """Prepare; `start` begins when the mount is there.

        ``attributes`` gives those of an open handle by its number.
        """
        self.open_nodes = OpenNodes()
        self._attributes = attributes
        self._release = release
        self._node = 0
        self._library = library
        self._turn = _Turn()
        self._lead = threading.Lock()
        self._busy = 0
        self._idle = threading.Condition()
        self._over = threading.Event()
        self.open_flags = _FLAGS.pack(0, 0)
        """Set by an `open` on its way to its answer: only the leader answers one."""

    def step_aside(self) -> None:
        """Let another thread lead: this one may have to wait."""
        turn = self._turn
        if turn.leads:
            turn.leads = False
            with self._idle:
                self._busy += 1
            self._lead.release()

    def start(self, filesystem: int, ready: Callable[[], None], ended: Callable[[], None]) -> None:
        """Serve a mounted ``struct fuse *``; call ``ready`` when the kernel has said hello.

        ``ended`` is called when it was unmounted.
        """
        library = self._library
        session = _function(library.fuse_get_session, _Pointer, _Pointer)(filesystem)
        channel = _function(library.fuse_session_next_chan, _Pointer, _Pointer, _Pointer)(
            session, None
        )
        self._ready, self._ended = ready, ended
        self._session, self._channel = session, channel
        self._fd: int = _function(library.fuse_chan_fd, ctypes.c_int, _Pointer)(channel)
        self._size: int = _function(library.fuse_chan_bufsize, ctypes.c_size_t, _Pointer)(channel)
        self._process = _function(
            library.fuse_session_process, None, _Pointer, _Pointer, ctypes.c_size_t, _Pointer
        )
        self._opening = self._channel_of_ours()
        for number in range(_THREADS):
            threading.Thread(target=self._work, name=f"fuse-{number}", daemon=True).start()

    def _channel_of_ours(self) -> int:
        """Make the channel through which `open` is answered."""
        send, destroy = _Send(self._send_opened), _Destroy(lambda _: None)
        operations = _ChannelOperations(
            None, ctypes.cast(send, _Pointer), ctypes.cast(destroy, _Pointer)
        )
        self._kept = (send, destroy, operations)
        new = _function(
            self._library.fuse_chan_new,
            _Pointer,
            _Pointer,
            ctypes.c_int,
            ctypes.c_size_t,
            _Pointer,
        )
        channel: int = new(ctypes.byref(operations), self._fd, self._size, None)
        return channel

    def _send_opened(self, _channel: int, iovecs: int, count: int) -> int:
        """Send the answer to an `open` or `create`: one part when it failed, else two."""
        try:
            if count == 1:
                head, size = _IOVEC.unpack(_string_at(iovecs, _IOVEC.size))
                os.write(self._fd, _string_at(head, size))
                return 0
            head, _, body, size = _IOVECS.unpack(_string_at(iovecs, _IOVECS.size))
            if size == _OPENED_BYTES:
                opened = _string_at(body, 8)
                node, answer = self._node, opened + self.open_flags
            else:
                answer = _string_at(body, size)
                (node,) = _OPENED.unpack_from(answer)
                opened = answer[_ENTRY_BYTES : _ENTRY_BYTES + 8]
            self.open_nodes.opened(node, *_OPENED.unpack(opened))
            os.write(self._fd, _string_at(head, 16) + answer)
        except OSError as error:
            return -(error.errno or errno.EIO)
        except BaseException:  # noqa: BLE001  (nothing may pass through libfuse)
            return -errno.EIO
        return 0

    def _answered(self, request: bytearray) -> bool:
        """Answer a question about a file without a name; say whether it was one."""
        _, code, unique, node = _REQUEST.unpack_from(request)
        number = self.open_nodes.handle_of(node)
        if number is None or (code == _SETATTR and request[40] & _SIZE_CHANGES):
            return False
        try:
            body = packed_attributes(self._attributes(number))
            answer = _ANSWER.pack(_ANSWER.size + len(body), 0, unique) + body
        except Exception as error:  # noqa: BLE001  (this is the edge)
            answer = _ANSWER.pack(_ANSWER.size, -errno_of(error), unique)
        with contextlib.suppress(OSError):  # the one who asked may be gone
            os.write(self._fd, answer)
        return True

    def _work(self) -> None:  # noqa: C901  (every request passes here: no call more than needed)
        """Lead when it is this thread's turn."""
        turn = self._turn
        lead, process, fd = self._lead, self._process, self._fd
        session, channel, opening = self._session, self._channel, self._opening
        buffer = bytearray(self._size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        buffers = [buffer]
        orphans, release, write = self.open_nodes.orphans, self._release, os.write
        while True:
            if not turn.leads:
                lead.acquire()
                turn.leads = True
                if self._over.is_set():
                    lead.release()
                    return
            try:
                size = os.readv(fd, buffers)
            except OSError as error:
                if error.errno in {errno.EINTR, errno.EAGAIN, errno.ENOENT}:
                    continue
                self._end()
                continue
            code = buffer[4]
            if code in _OPENING:
                self._node = int.from_bytes(buffer[16:24], sys.byteorder)
                process(session, address, size, opening)
            elif code == _RELEASE and release(int.from_bytes(buffer[40:48], sys.byteorder)):
                write(fd, _DONE + buffer[8:16])
            elif orphans and code in _ASKING and self._answered(buffer):
                continue
            else:
                process(session, address, size, channel)
                if code == _INIT:
                    self._ready()
            if not turn.leads:
                with self._idle:
                    self._busy -= 1
                    self._idle.notify_all()

    def _end(self) -> None:
        """Stop leading for good: the mount is gone."""
        first = not self._over.is_set()
        self._over.set()
        self._turn.leads = False
        self._lead.release()
        if first:
            self._ended()

    def settle(self, timeout_seconds: float) -> bool:
        """Wait until no operation is under way that stepped aside; say whether that came."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._busy, timeout_seconds)


def _function(
    function: Callable[..., object], result: object, *arguments: object
) -> Callable[..., int]:
    """Give a function of the library with its types."""
    function.restype = result  # type: ignore[attr-defined]
    function.argtypes = arguments  # type: ignore[attr-defined]
    return function  # type: ignore[return-value]
