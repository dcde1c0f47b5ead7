"""The loop that feeds requests to libfuse, in Python's own threads.

libfuse 2's own loop calls Python from threads that Python does not know: each call makes and frees
a thread state, and several threads wake up for what one can do. Here one thread at a time, the
leader, reads a request and answers it before it reads the next. An operation that may have to wait
for a disk first steps aside, and another thread leads on. So what is quick is as quick as in one
thread, and what is slow holds nobody up. While something slow is under way, whoever may have to
wait for it inside libfuse (which locks the paths that a rename changes) steps aside, too.

Readers open with FOPEN_NOFLUSH (Linux 5.16), which libfuse 2 does not know: the answer to an `open`
goes through a channel of ours that sets it, and the close of a reader then asks nothing. So do the
answers to other questions about a node that was looked up: libfuse says ENOENT when the node has
just lost its name to a rename; ESTALE makes the kernel look the name up again, once. The next
rename waits until whoever asked has found it then, so that once is enough.

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
import time
from typing import TYPE_CHECKING, Final

from kvstatefs.errnos import errno_of
from kvstatefs.open_nodes import OpenNodes, packed_attributes, requested_changes

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstatefs.nodes import Attributes, Changes

__all__ = ["Session", "packed_open_flags"]

_THREADS: Final = 24
_GRACE_SECONDS: Final = 0.2
_LOOKUP: Final = 1
_GETATTR: Final = 3
_SETATTR: Final = 4
_OPEN: Final = 14
_INIT: Final = 26
_RENAME: Final = 12
_RELEASE: Final = 18
_CREATE: Final = 35
_BY_CHANNEL: Final = frozenset({_GETATTR, _SETATTR, 5, _OPEN, 22, 23, _CREATE, 27})
"""What is answered through our channel: the above, readlink, getxattr, listxattr, opendir."""
_BY_NAME: Final = frozenset(
    {1, _GETATTR, _SETATTR, 5, 6, 8, 9, 10, 11, 12, _OPEN, 22, 23, _CREATE, 27}
)
"""What libfuse looks up a path for."""
_ASKING: Final = frozenset({_GETATTR, _SETATTR})
_SIZE_CHANGES: Final = 1 << 3  # FATTR_SIZE of setattr's first word

_REQUEST = struct.Struct("=IIQQ")  # length, code, unique, node; 16 bytes more; the body at 40
_ANSWER = struct.Struct("=IiQ")  # length, -errno, unique
_DONE: Final = struct.pack("=Ii", 16, 0)
_HANDLE = struct.Struct("=Q")  # a handle or a node; after a handle: flags (4), padding (4)
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
    """Whether this thread leads, and what it knows of the request that it serves."""

    leads = False
    code = 0
    node = 0
    asker = 0
    open_flags = _FLAGS.pack(0, 0)


class Session:
    """Reads requests of a mount and hands them to libfuse."""

    def __init__(
        self,
        library: ctypes.CDLL,
        attributes: Callable[[int], Attributes],
        release: Callable[[int], bool],
        keep: Callable[[int, Changes], None] = lambda _number, _changes: None,
    ) -> None:
        """Prepare; `start` begins when the mount is there.

        ``attributes`` gives those of an open handle by its number, ``keep`` changes them where the
        file's name is gone.
        """
        self.open_nodes = OpenNodes()
        self._attributes = attributes
        self._release = release
        self._keep = keep
        self._lost: set[int] = set()
        """Threads of other processes that lost a name to a rename and look for it again."""
        self._found = threading.Condition()
        self._library = library
        self._turn = _Turn()
        self._lead = threading.Lock()
        self._busy = 0
        self._idle = threading.Condition()
        self._over = threading.Event()

    def answer_open(self, flags: bytes) -> None:
        """Let the `open` that this thread serves be answered with these flags."""
        self._turn.open_flags = flags

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
        self._own_channel = self._channel_of_ours()
        for number in range(_THREADS):
            threading.Thread(target=self._work, name=f"fuse-{number}", daemon=True).start()

    def _channel_of_ours(self) -> int:
        """Make the channel whose answers pass through here."""
        send, destroy = _Send(self._send), _Destroy(lambda _: None)
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

    def _send(self, _channel: int, iovecs: int, count: int) -> int:
        """Send an answer: of one part when it failed, else of two."""
        try:
            if count == 1:
                answer = self._failed(*_IOVEC.unpack(_string_at(iovecs, _IOVEC.size)))
            else:
                if self._lost and self._turn.code != _LOOKUP:
                    self._has_found()
                head, _, body, size = _IOVECS.unpack(_string_at(iovecs, _IOVECS.size))
                answer = _string_at(head, _ANSWER.size) + self._body(body, size)
            os.write(self._fd, answer)
        except OSError as error:
            return -(error.errno or errno.EIO)
        except BaseException:  # noqa: BLE001  (nothing may pass through libfuse)
            return -errno.EIO
        return 0

    def _failed(self, head: int, size: int) -> bytes:
        answer = _string_at(head, size)
        length, number, unique = _ANSWER.unpack_from(answer)
        if number != -errno.ENOENT:
            return answer
        if self._turn.code == _LOOKUP:
            self._has_found()  # that it is gone for good
            return answer
        with self._found:
            self._lost.add(self._turn.asker)
        return _ANSWER.pack(length, -errno.ESTALE, unique)

    def _has_found(self) -> None:
        """Take note that the one who is answered need not be waited for."""
        with self._found:
            self._lost.discard(self._turn.asker)
            self._found.notify_all()

    def _let_find(self) -> None:
        """Wait until those have found their names who lost them, or are not looking any more."""
        with self._found:
            if not self._found.wait_for(lambda: not self._lost, _GRACE_SECONDS):
                self._lost.clear()

    def _body(self, body: int, size: int) -> bytes:
        """Give an answer's body; of an `open` with its flags, and its node taken note of."""
        if size == _OPENED_BYTES and self._turn.code == _OPEN:
            opened = _string_at(body, 8)
            self.open_nodes.opened(self._turn.node, *_HANDLE.unpack(opened))
            return opened + self._turn.open_flags
        answer = _string_at(body, size)
        if size == _ENTRY_BYTES + _OPENED_BYTES and self._turn.code == _CREATE:
            number = _HANDLE.unpack_from(answer, _ENTRY_BYTES)
            self.open_nodes.opened(*_HANDLE.unpack_from(answer), *number)
        return answer

    def _answered(self, request: bytearray) -> bool:
        """Answer a question about a file without a name; say whether it was one."""
        _, code, unique, node = _REQUEST.unpack_from(request)
        number = self.open_nodes.handle_of(node)
        if number is None or (code == _SETATTR and request[40] & _SIZE_CHANGES):
            return False
        try:
            if code == _SETATTR:
                self._keep(number, requested_changes(request, time.time_ns()))
            body = packed_attributes(self._attributes(number))
            answer = _ANSWER.pack(_ANSWER.size + len(body), 0, unique) + body
        except Exception as error:  # noqa: BLE001  (this is the edge)
            answer = _ANSWER.pack(_ANSWER.size, -errno_of(error), unique)
        with contextlib.suppress(OSError):  # the one who asked may be gone
            os.write(self._fd, answer)
        return True

    def _work(self) -> None:
        """Lead when it is this thread's turn."""
        turn, lead, serve = self._turn, self._lead, self._serve
        buffer = bytearray(self._size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        buffers, fd, readv = [buffer], self._fd, os.readv
        while True:
            if not turn.leads:
                lead.acquire()
                turn.leads = True
                if self._over.is_set():
                    lead.release()
                    return
            try:
                size = readv(fd, buffers)
            except OSError as error:
                if error.errno not in {errno.EINTR, errno.EAGAIN, errno.ENOENT}:
                    self._end()
                continue
            serve(buffer, address, size)
            if not turn.leads:
                with self._idle:
                    self._busy -= 1
                    self._idle.notify_all()

    def _serve(self, request: bytearray, address: int, size: int) -> None:
        """Answer one request."""
        code = request[4]
        if code == _RELEASE and self._release(int.from_bytes(request[40:48], sys.byteorder)):
            os.write(self._fd, _DONE + request[8:16])
            return
        if self._busy and code in _BY_NAME:
            self.step_aside()
        if code == _RENAME and self._lost:
            self.step_aside()
            self._let_find()
        if code in _BY_CHANNEL or (code == _LOOKUP and self._lost):
            if code in _ASKING and self.open_nodes.orphans and self._answered(request):
                return
            self._turn.code = code
            self._turn.asker = int.from_bytes(request[32:36], sys.byteorder)
            self._turn.node = int.from_bytes(request[16:24], sys.byteorder)
            self._process(self._session, address, size, self._own_channel)
            return
        self._process(self._session, address, size, self._channel)
        if code == _INIT:
            self._ready()

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
