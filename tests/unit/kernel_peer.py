"""Speaks to the kernel's adapter as Linux does, without a mount: a socket stands for `/dev/fuse`.

The structures are those of `linux/fuse.h`, written down once more: what the adapter takes them for
is what is tested.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import NamedTuple

import pytest

import kvstatefs.kernel.mounted
from kvstatefs.kernel.ledger import Ledger
from kvstatefs.kernel.serving import Serving
from kvstatefs.kernel.wire import Code
from kvstatefs.tree import Tree

ROOT = 1
SECONDS = 20.0
ALL_FLAGS = (1 << 64) - 1
INIT_EXT = 1 << 30
PASSTHROUGH = 1 << 37
NO_OPEN_SUPPORT = 1 << 17
RESENT = 1 << 63
OTHER_PID = 1
"""A process that is there, and is not this one."""
HOUR = 3600

_HEAD = struct.Struct("=IIQQIIIHH")
_ANSWER = struct.Struct("=IiQ")
_ENTRY = struct.Struct("=QQQQII")
_ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
_STORE = 4
_NOTICES = {2: "inode", 3: "entry", 7: "resend"}


class Answer(NamedTuple):
    error: int
    body: bytes


class Stat(NamedTuple):
    inode: int
    size: int
    mode: int
    links: int
    uid: int
    gid: int
    modified_ns: int
    accessed_ns: int
    valid: float
    raw: bytes


class Entry(NamedTuple):
    number: int
    valid: float
    stat: Stat

    @property
    def size(self):
        return self.stat.size

    @property
    def inode(self):
        return self.stat.inode


class Opened(NamedTuple):
    handle: int
    flags: int
    backing: int

    @property
    def direct(self):
        return bool(self.flags & 1)

    @property
    def keeps_cache(self):
        return bool(self.flags & 2)


class Agreement(NamedTuple):
    major: int
    minor: int
    flags: int
    write_bytes: int
    stack_depth: int


class Dirent(NamedTuple):
    name: str
    inode: int
    after: int
    kind: int
    entry: Entry | None


def stat_of(raw, valid):
    (inode, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, links, uid, gid, *_) = (
        _ATTRIBUTES.unpack(raw)
    )
    modified, accessed = mtime * 10**9 + mtime_ns, atime * 10**9 + atime_ns
    return Stat(inode, size, mode, links, uid, gid, modified, accessed, valid, bytes(raw))


def entry_of(body):
    number, _, seconds, others, rest, left = _ENTRY.unpack_from(body)
    raw = body[_ENTRY.size : _ENTRY.size + _ATTRIBUTES.size]
    return Entry(number, seconds + rest / 1e9, stat_of(raw, others + left / 1e9))


def stat_answer(body):
    seconds, rest, _ = struct.unpack_from("=QII", body)
    assert len(body) == 16 + _ATTRIBUTES.size
    return stat_of(body[16:], seconds + rest / 1e9)


class SupervisorStandIn:
    """Holds descriptors, as a supervisor does for its workers."""

    def __init__(self):
        self.descriptors = {}
        self.said = []
        self.handed_over = False
        self.upgrade_wanted = self.upgrade_called_off = self.stop_wanted = None

    def ready(self, *, resumable=True):
        self.said.append(("ready", resumable))

    def hold(self, name, descriptor):
        old = self.descriptors.get(name)
        self.descriptors[name] = os.dup(descriptor)
        if old is not None:
            os.close(old)

    def release(self, name):
        descriptor = self.descriptors.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def held(self):
        return {name: os.dup(descriptor) for name, descriptor in self.descriptors.items()}

    def refuse_upgrade(self, why):
        self.said.append(("refused", why))

    def hand_over(self):
        self.handed_over = True

    def close(self):
        for name in list(self.descriptors):
            self.release(name)


class Kernel:
    """One mount's kernel: asks, and keeps what it is told."""

    def __init__(self, tree, *, ledger, link, resumed=False, passthrough=True, pid=None):
        self.tree = tree
        self.ledger = ledger
        self.link = link
        self.pid = os.getpid() if pid is None else pid
        self.uid, self.gid = os.getuid(), os.getgid()
        self._uniques = itertools.count(2, 2)
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._state = threading.Condition()
        self.answers = defaultdict(list)
        self.notices = []
        self.given = {}
        self.serving = Serving(
            self._far.fileno(), tree, "/nowhere", ledger, link, passthrough=passthrough
        )
        self.service = self.serving.service
        self.over = False
        self._reader = threading.Thread(target=self._receive, name="kernel", daemon=True)
        self._reader.start()
        self.serving.start(resumed=resumed)

    @property
    def files(self):
        """The adapter's open files."""
        return self.service.opening.files

    # What goes to and fro

    def _receive(self):
        while True:
            try:
                message = self._near.recv(1 << 21)
            except OSError:
                return
            if not message:
                return
            length, error, unique = _ANSWER.unpack_from(message)
            assert length == len(message), message
            with self._state:
                if unique:
                    self.answers[unique].append(Answer(-error, message[16:]))
                elif error == _STORE:
                    number, offset, size, _ = struct.unpack_from("=QQII", message, 16)
                    assert (offset, size) == (0, len(message) - 40)
                    self.given[number] = message[40:]
                else:
                    self.notices.append(self._notice(error, message[16:]))
                self._state.notify_all()

    @staticmethod
    def _notice(code, body):
        kind = _NOTICES[code]
        if kind == "inode":
            number, offset, length = struct.unpack("=Qqq", body)
            return kind, number, (offset, length)
        if kind == "entry":
            parent, length, flags = struct.unpack_from("=QII", body)
            assert len(body) == 16 + length + 1
            assert flags == 0
            return kind, parent, os.fsdecode(body[16 : 16 + length])
        return kind, 0, None

    def send_raw(self, message):
        self._near.sendall(message)

    def send(self, code, node, body=b"", *, pid=None, unique=None, uid=None, gid=None):
        unique = next(self._uniques) if unique is None else unique
        head = _HEAD.pack(
            *(40 + len(body), code, unique, node),
            *(self.uid if uid is None else uid, self.gid if gid is None else gid),
            *(self.pid if pid is None else pid, 0, 0),
        )
        self.send_raw(head + body)
        return unique

    def answered(self, unique):
        with self._state:
            return unique in self.answers

    def answer(self, unique, seconds=SECONDS):
        with self._state:
            came = self._state.wait_for(lambda: unique in self.answers, seconds)
            assert came, f"no answer in {seconds} s"
            return self.answers[unique][0]

    def answer_to(self, code, node, body=b"", **others):
        """Ask, and give the answer, be it an error."""
        return self.answer(self.send(code, node, body, **others))

    def ask(self, code, node, body=b"", **others):
        """Ask, and give what was answered; raise the error that it was."""
        answer = self.answer_to(code, node, body, **others)
        if answer.error:
            assert answer.body == b""
            raise OSError(answer.error, f"{Code(code).name}: {os.strerror(answer.error)}")
        return answer.body

    # Beginning and ending

    def init(self, flags=ALL_FLAGS, *, major=7, minor=41, extended=True):
        low = flags & 0xFFFF_FFFF
        low = low | INIT_EXT if extended else low & ~INIT_EXT
        body = struct.pack("=IIII", major, minor, 1 << 17, low)
        if extended:
            body += struct.pack("=I44x", flags >> 32 & 0xFFFF_FFFF)
        answer = self.ask(Code.INIT, 0, body, pid=0)
        (major, minor, _, low, _, _, write_bytes, _, _, _, high, depth, _) = _INIT_OUT.unpack(
            answer
        )
        return Agreement(major, minor, low | high << 32, write_bytes, depth)

    def settle(self):
        """Wait until all that was committed and asked was looked at, told, and has arrived here."""
        self.answer_to(Code.DESTROY, 0)
        assert self.service.loop.settle(SECONDS)
        assert self.service.mounted.feed.settle(SECONDS)
        assert self.service.mounted.notices.settle(SECONDS)
        self.answer_to(Code.DESTROY, 0)

    def told(self):
        """Give the notices that came since the last time, in an order of their own."""
        self.settle()
        with self._state:
            notices, self.notices = self.notices, []
        return sorted(set(notices), key=repr)

    def wait_for_notice(self, kind, number, what=None):
        def came():
            return any(
                each[:2] == (kind, number) and what in {None, each[2]} for each in self.notices
            )

        with self._state:
            assert self._state.wait_for(came, SECONDS), (kind, number, what, self.notices)

    def stop(self):
        """End this adapter, as a process ends that is killed: its threads read no more."""
        if self.over:
            return
        self.over = True
        loop, feed = self.service.loop, self.service.mounted.feed
        loop.leave()
        feed.stop()
        self._near.shutdown(socket.SHUT_WR)
        store = self.tree.store
        store.namespace("the-end")["at"] = time.monotonic_ns()  # who waits for a commit goes on
        for thread in threading.enumerate():
            work = getattr(thread, "function", None) or getattr(thread, "_target", None)
            owner = getattr(work, "__self__", None)
            if isinstance(thread, threading.Timer) and owner is self.service.mounted.notices:
                thread.cancel()
                thread.join(SECONDS)
            elif owner is loop or owner is feed or owner is self.serving:
                thread.join(SECONDS)
                assert not thread.is_alive(), thread
        assert self.service.mounted.notices.settle(SECONDS)
        self._near.shutdown(socket.SHUT_RDWR)
        self._reader.join(SECONDS)
        self._near.close()
        self._far.close()

    # What programs do

    def lookup(self, parent, name, **who):
        return entry_of(self.ask(Code.LOOKUP, parent, os.fsencode(name) + b"\0", **who))

    def walk(self, path, **who):
        """Look up each part of a path; give the last one's entry."""
        number = ROOT
        for name in path.split("/"):
            entry = self.lookup(number, name, **who)
            number = entry.number
        return entry

    def forget(self, number, count):
        self.send(Code.FORGET, number, struct.pack("=Q", count))

    def getattr(self, number):
        return stat_answer(self.ask(Code.GETATTR, number, struct.pack("=IIQ", 0, 0, 0)))

    def setattr(self, number, *, valid, handle=0, **values):
        def value(name):
            return values.get(name, 0)

        body = struct.pack(
            "=IIQQQQQQIIIIIIII",
            *(valid, 0, handle, value("size"), 0, value("atime"), value("mtime"), 0),
            *(value("atime_ns"), value("mtime_ns"), 0, value("mode"), 0),
            *(value("uid"), value("gid"), 0),
        )
        return stat_answer(self.ask(Code.SETATTR, number, body))

    def mkdir(self, parent, name, mode=0o755, **who):
        body = struct.pack("=II", mode, 0) + os.fsencode(name) + b"\0"
        return entry_of(self.ask(Code.MKDIR, parent, body, **who))

    def create(self, parent, name, flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o644, **who):
        body = struct.pack("=IIII", flags, mode | 0o100000, 0, 0) + os.fsencode(name) + b"\0"
        answer = self.ask(Code.CREATE, parent, body, **who)
        return entry_of(answer), Opened(*struct.unpack_from("=QIi", answer, 128))

    def open(self, number, flags=os.O_RDONLY, **who):
        body = struct.pack("=II", flags, 0)
        return Opened(*struct.unpack("=QIi", self.ask(Code.OPEN, number, body, **who)))

    def open_path(self, path, flags=os.O_RDONLY, **who):
        """Open as open(2) does: what is answered ESTALE is looked up and opened once more."""
        entry = self.walk(path, **who)
        try:
            return entry, self.open(entry.number, flags, **who)
        except OSError as error:
            if error.errno != 116:
                raise
        entry = self.walk(path, **who)
        return entry, self.open(entry.number, flags, **who)

    def send_read(self, number, handle, offset=0, size=1 << 16, **who):
        body = struct.pack("=QQIIQII", handle, offset, size, 0, 0, 0, 0)
        return self.send(Code.READ, number, body, **who)

    def read(self, number, handle, offset=0, size=1 << 16, **who):
        answer = self.answer(self.send_read(number, handle, offset, size, **who))
        if answer.error:
            raise OSError(answer.error, "READ")
        return answer.body

    def write(self, number, handle, data, offset=0, *, flags=0):
        body = struct.pack("=QQIIQII", handle, offset, len(data), flags, 0, 0, 0) + data
        written, padding = struct.unpack("=II", self.ask(Code.WRITE, number, body))
        assert padding == 0
        return written

    def flush(self, number, handle):
        self.ask(Code.FLUSH, number, struct.pack("=QIIQ", handle, 0, 0, 0))

    def fsync(self, number, handle):
        self.ask(Code.FSYNC, number, struct.pack("=QII", handle, 0, 0))

    def release(self, number, handle):
        self.ask(Code.RELEASE, number, struct.pack("=QIIQ", handle, 0, 0, 0))

    def close(self, number, handle):
        self.flush(number, handle)
        self.release(number, handle)

    def put(self, parent, name, data):
        entry, opened = self.create(parent, name)
        self.write(entry.number, opened.handle, data)
        self.close(entry.number, opened.handle)
        return entry

    def unlink(self, parent, name):
        assert self.ask(Code.UNLINK, parent, os.fsencode(name) + b"\0") == b""

    def rename(self, parent, name, new_parent, new_name, flags=None):
        names = os.fsencode(name) + b"\0" + os.fsencode(new_name) + b"\0"
        if flags is None:
            body, code = struct.pack("=Q", new_parent), Code.RENAME
        else:
            body, code = struct.pack("=QII", new_parent, flags, 0), Code.RENAME2
        assert self.ask(code, parent, body + names) == b""

    def listing(self, number, *, plus=False, room=1 << 16, offset=0, handle=None):
        """List from an offset to the end, in as many requests as that takes."""
        opened = handle or self.opendir(number)
        found = []
        while page := self.page(number, opened, offset, room, plus=plus):
            found += page
            offset = page[-1].after
        return found

    def opendir(self, number):
        body = struct.pack("=II", 0, 0)
        return struct.unpack("=QIi", self.ask(Code.OPENDIR, number, body))[0]

    def page(self, number, handle, offset, room, *, plus=False):
        code = Code.READDIRPLUS if plus else Code.READDIR
        body = struct.pack("=QQIIQII", handle, offset, room, 0, 0, 0, 0)
        answer = self.ask(code, number, body)
        assert len(answer) <= room
        found, at = [], 0
        while at < len(answer):
            entry = None
            if plus:
                entry = entry_of(answer[at : at + 128])
                at += 128
            inode, after, length, kind = struct.unpack_from("=QQII", answer, at)
            name = os.fsdecode(answer[at + 24 : at + 24 + length])
            at += 24 + length + -length % 8
            found.append(Dirent(name, inode, after, kind, entry))
        assert at == len(answer)
        return found

    def getxattr(self, number, name, room=1 << 16):
        body = struct.pack("=II", room, 0) + os.fsencode(name) + b"\0"
        return self.ask(Code.GETXATTR, number, body)

    def setxattr(self, number, name, value, flags=0):
        body = struct.pack("=II", len(value), flags) + os.fsencode(name) + b"\0" + value
        assert self.ask(Code.SETXATTR, number, body) == b""


class Mounting:
    """Starts adapters on stores, and ends them all."""

    def __init__(self):
        self._kernels = []
        self._links = []

    def __call__(
        self, store, *, read_only=False, init=True, ledger=None, link=None, resumed=False, **others
    ):
        link = link or SupervisorStandIn()
        self._links.append(link)
        tree = Tree(store, read_only=read_only)
        kernel = Kernel(
            tree, ledger=ledger or Ledger.create(1 << 20), link=link, resumed=resumed, **others
        )
        self._kernels.append(kernel)
        if init and not resumed:
            kernel.init()
        return kernel

    def succeed(self, kernel, store=None):
        """Let another process go on where one was killed."""
        kernel.stop()
        ledger = Ledger.attach([os.dup(each) for each in kernel.ledger.fds])
        return self(store or kernel.tree.store, ledger=ledger, link=kernel.link, resumed=True)

    def end(self):
        for kernel in self._kernels:
            kernel.stop()
        for kernel in self._kernels:
            kernel.ledger.close()
        for link in self._links:
            link.close()


@contextmanager
def mounting():
    """Give what mounts stores; those who wait to look again may take their time."""
    kernels = Mounting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvstatefs.kernel.mounted, "GRACE_SECONDS", 600.0)
        try:
            yield kernels
        finally:
            kernels.end()
