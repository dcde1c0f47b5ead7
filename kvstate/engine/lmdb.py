"""The engine on LMDB: one memory-mapped file, many processes, one writer at a time. Its only door.

The environment is the folder `records/` of the store (``data.mdb``, ``lock.mdb``). The map is 1 TiB
of address space, so that it never has to grow; LMDB's default sync stays on, and no writemap. A
process opens an environment once and shares it (LMDB's locks belong to the process); nothing
survives a fork.

After a commit failed for any reason but a full disk, what the disk holds is unknown: this process
refuses writes until the store is opened again. A full disk leaves the last state: LMDB writes new
pages beside the old ones and points to them last.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import threading
import weakref
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import lmdb
from lmdb._envid import env_keys

from kvstate.engine.groups import Groups, Member
from kvstate.engine.inotify import FileWatch
from kvstate.errors import (
    Damaged,
    Denied,
    Full,
    Incompatible,
    InvalidName,
    NotFound,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvstate.engine import Reader, Transaction

__all__ = ["LmdbEngine"]

T = TypeVar("T")

_LOCK_FILE_BYTES = 256  # LMDB's lock file: header and, for each reader, one line of 64 bytes
_READER_BYTES = 64
_META_PAGES = 2
_SPARE_TRANSACTIONS = 16
_SETTLE_SECONDS = 0.002
_POLL_SECONDS = 0.05
_READER_CHECK_EVERY = 1024
_MEMO_MAX = 10_000
_FULL_BELOW_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class _Cursor:
    """The read half of a transaction."""

    __slots__ = ("_txn", "get")

    def __init__(self, txn: lmdb.Transaction[bytes]) -> None:
        self._txn = txn
        self.get = txn.get

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._txn.cursor()
        if reverse:
            there = cursor.prev() if cursor.set_range(stop) else cursor.last()
            while there and cursor.key() >= start:
                yield cursor.item()
                there = cursor.prev()
            return
        if not cursor.set_range(start):
            return
        for pair in cursor:
            if pair[0] >= stop:
                return
            yield pair


class _Writer(_Cursor):
    """A transaction that also writes, and knows whether it did."""

    __slots__ = ("_delete", "_put", "memo", "writes")

    def __init__(self, txn: lmdb.Transaction[bytes], memo: dict[object, Any]) -> None:
        super().__init__(txn)
        self.memo = memo
        self._put = txn.put
        self._delete = txn.delete
        self.writes = 0

    def put(self, key: bytes, value: bytes) -> None:
        self.writes += 1
        self._put(key, value)

    def delete(self, key: bytes) -> bool:
        self.writes += 1
        return self._delete(key)


class _Rollback(Exception):
    """A member failed after it had written: roll back and run the others again."""


class _Environment:
    """One open environment, shared by all engines of this process that stand on it."""

    def __init__(self, path: Path, env: lmdb.Environment) -> None:
        self.path = path
        self.env = env
        self.identity = _identity(path / "data.mdb")
        self.users = 1
        self.failed: str | None = None
        self._commits = 0
        self._memo: dict[object, Any] = {}
        self._memo_of = -1
        self.groups = Groups(self._commit)

    def _commit(self, members: list[Member[Any]]) -> None:
        if self.failed:
            raise Unavailable("store", f"a commit failed ({self.failed}): open it again")
        left = members
        while left:
            try:
                self._commit_once(left)
            except _Rollback:
                left = [member for member in left if member.error is None]
            else:
                return

    def _commit_once(self, members: list[Member[Any]]) -> None:
        try:
            txn = self.env.begin(write=True)
        except lmdb.Error as error:
            _raise(error, self.path)
        number = txn.id()
        memo = self._memo if self._memo_of == number - 1 and len(self._memo) < _MEMO_MAX else {}
        self._memo_of = -1
        writer = _Writer(txn, memo)
        try:
            for member in members:
                self._run_member(member, writer)
        except BaseException:
            txn.abort()
            raise
        wrote = self._finish(txn, writer)
        self._memo = memo
        self._memo_of = number if wrote else number - 1

    def _run_member(self, member: Member[Any], writer: _Writer) -> None:
        before = writer.writes
        try:
            member.result = member.function(writer)
        except lmdb.Error as error:
            member.error = _translated(error, self.path)
        except Exception as error:  # noqa: BLE001  (it is raised again, in its own thread)
            member.error = error
        if member.error is not None and writer.writes != before:
            raise _Rollback

    def _finish(self, txn: lmdb.Transaction[bytes], writer: _Writer) -> bool:
        """Commit what was written, if anything was; say whether."""
        if not writer.writes:
            txn.abort()
            return False
        self._commits += 1
        if self._commits % _READER_CHECK_EVERY == 0:
            self.env.reader_check()
        try:
            txn.commit()
        except lmdb.Error as error:
            translated = _translated(error, self.path)
            if not isinstance(translated, Full) and _disk_is_full(self.path):
                translated = _full(self.path)
            elif not isinstance(translated, Full):
                self.failed = str(error)
            raise translated from error
        return True


_environments: dict[tuple[int, int], _Environment] = {}
_environments_lock = threading.Lock()
_first_pid = os.getpid()
_opened_here: set[object] = set()
_engines: weakref.WeakSet[LmdbEngine] = weakref.WeakSet()


class LmdbEngine:
    """Ordered bytes in an LMDB environment."""

    def __init__(
        self, path: Path, *, map_bytes: int, readers_max: int, read_only: bool, create: bool
    ) -> None:
        """Open or create the environment in this folder.

        `NotFound` when there is none and ``create`` is off; `Incompatible` for one of another LMDB
        version or machine; `Denied` when its files may not be written; `Full` without room.
        """
        self._data = path.absolute() / "data.mdb"
        self._path = path
        self._shared = _acquire(path, map_bytes, readers_max, read_only=read_only, create=create)
        self._env = self._shared.env
        self._begin = self._env.begin
        self._info = self._env.info
        self._run = self._shared.groups.run
        self._watches = threading.local()
        self._closing = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        _engines.add(self)

    def get(self, key: bytes) -> bytes | None:
        try:
            with self._begin() as txn:
                return txn.get(key)
        except lmdb.Error as error:
            _raise(error, self._path)

    def scan(
        self, start: bytes, stop: bytes, *, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        def page(reader: Reader) -> list[tuple[bytes, bytes]]:
            return list(islice(reader.scan(start, stop, reverse=reverse), limit))

        return self.read(page)

    def read(self, function: Callable[[Reader], T]) -> T:
        try:
            with self._begin() as txn:
                return function(_Cursor(txn))
        except lmdb.Error as error:
            _raise(error, self._path)

    def txn(self, function: Callable[[Transaction], T]) -> T:
        return self._run(function)

    def revision(self) -> int:
        # Not what `Environment.info` says: that is ahead of what readers see while a commit syncs.
        with self._begin() as txn:
            return txn.id()

    def watch(self, since: int, timeout: float) -> int:
        """Wait for a commit by anyone; without inotify, look every 50 ms."""
        watch = self._watch()
        revision = self.revision()
        if revision > since or timeout <= 0:
            return revision
        if watch is None:
            select.select([self._closing], [], [], min(timeout, _POLL_SECONDS))
        elif watch.wait(timeout, self._closing):
            # The event of the meta page may come a moment before readers can see the commit.
            for _ in range(50):
                if self.revision() > since:
                    break
                watch.wait(_SETTLE_SECONDS, self._closing)
        return self.revision()

    def _watch(self) -> FileWatch | None:
        if not hasattr(self._watches, "watch"):
            self._watches.watch = None
            with contextlib.suppress(OSError):
                self._watches.watch = FileWatch(str(self._data))
        watch: FileWatch | None = self._watches.watch
        return watch

    def stats(self) -> dict[str, int]:
        info, shape = self._info(), self._env.stat()
        pages = info["last_pgno"] + 1
        filled = shape["branch_pages"] + shape["leaf_pages"] + shape["overflow_pages"]
        return {
            "used_bytes": pages * shape["psize"],
            # With the few pages on which LMDB notes which are free.
            "free_bytes": max(0, pages - _META_PAGES - filled) * shape["psize"],
            "page_bytes": shape["psize"],
            "map_bytes": info["map_size"],
            "readers": info["num_readers"],
            "readers_max": info["max_readers"],
        }

    def failure(self) -> str:
        if self._shared.failed:
            return f"a commit failed ({self._shared.failed}): open it again"
        try:
            moved = _identity(self._data) != self._shared.identity
        except OSError as error:
            return f"its records are not where they were ({error.strerror}): was it moved?"
        return "another store lies where it was: open it again" if moved else ""

    def close(self) -> None:
        if self._closed:
            return
        self._let_go("it was closed")
        with _environments_lock:
            self._shared.users -= 1
            if not self._shared.users:
                for key, shared in list(_environments.items()):
                    if shared is self._shared:
                        del _environments[key]
                self._env.close()

    def _let_go(self, why: str) -> None:
        """Make every use raise `Unavailable`, without touching the environment."""

        def gone(*_: object, **__: object) -> NoReturn:
            raise Unavailable("store", why)

        self._closed = True
        self._begin = self._info = self._run = gone
        os.eventfd_write(self._closing, 1)

    def __del__(self) -> None:
        if hasattr(self, "_closing"):
            os.close(self._closing)


def _acquire(
    path: Path, map_bytes: int, readers_max: int, *, read_only: bool, create: bool
) -> _Environment:
    data = path / "data.mdb"
    with _environments_lock:
        if data.exists():
            shared = _environments.get(_identity(data))
            if shared is not None:
                shared.users += 1
                shared.env.reader_check()
                return shared
        elif read_only or not create:
            raise NotFound("store", str(path.parent))
        try:
            _reserve_lock_file(path, readers_max, read_only=read_only)
            _forget_the_parents(data)
            env = lmdb.open(
                str(path),
                map_size=map_bytes,
                max_readers=readers_max,
                max_spare_txns=_SPARE_TRANSACTIONS,
                max_dbs=0,
                mode=0o600,
                readonly=read_only,
                create=False,
                lib_version=0,
            )
            env.reader_check()
        except (lmdb.Error, OSError) as error:
            _raise(error, path)
        shared = _Environment(path, env)
        _environments[_identity(data)] = shared
        return shared


def _forget_the_parents(data: Path) -> None:
    """Let a forked child open what its parent had open.

    The binding refuses to open a file twice in one process and remembers the open ones in a set;
    the set is inherited by a fork although LMDB's locks are not. There is no call to tell it, but
    the set can be found among the interpreter's objects. If it ever cannot, opening is refused with
    the binding's own words, and nothing else is lost.
    """
    if os.getpid() == _first_pid or not data.exists():
        return
    inherited = set(env_keys(data.parent, subdir=True)) - _opened_here  # type: ignore[no-untyped-call]
    for found in gc.get_objects():
        if type(found) is set and not inherited.isdisjoint(found) and found is not inherited:
            found.difference_update(inherited)
    _opened_here.update(inherited)


def _identity(data: Path) -> tuple[int, int]:
    stat = data.stat()
    return stat.st_dev, stat.st_ino


def _reserve_lock_file(path: Path, readers_max: int, *, read_only: bool) -> None:
    """Give the lock file its blocks: it is mapped, and a full disk would kill the process later."""
    if read_only:
        return
    fd = os.open(path / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(fd).st_size == 0:
            os.posix_fallocate(fd, 0, _LOCK_FILE_BYTES + readers_max * _READER_BYTES)
    finally:
        os.close(fd)


def _disk_is_full(path: Path) -> bool:
    """Say whether there is no room left: LMDB calls a short write an I/O error."""
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize < _FULL_BELOW_BYTES


def _full(path: Path) -> Full:
    return Full(f"store {str(path.parent)!r}", "no space left on its disk: free some, then go on")


def _translated(error: Exception, path: Path) -> Exception:
    """Say an LMDB or system error in the store's own words."""
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    what = f"store {str(path.parent)!r}"
    if isinstance(error, lmdb.MapFullError):
        return Full(what, "its map is used up: give it a larger map_bytes or delete something")
    if isinstance(error, lmdb.VersionMismatchError):
        return Incompatible(what, "another version of LMDB wrote its records")
    if isinstance(error, lmdb.InvalidError):
        return Incompatible(
            what, "its records are no LMDB file of this kind of machine (word size or byte order)"
        )
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.PanicError):
        return Damaged(what, str(error))
    if isinstance(error, lmdb.BadValsizeError):
        return InvalidName("record", "key", "LMDB holds keys of 1 to 511 bytes")
    if isinstance(error, lmdb.ReadersFullError):
        return Unavailable(what, "all reader slots are taken: raise readers_max", retry=True)
    if code in _NO_ROOM:
        return _full(path)
    if isinstance(error, lmdb.ReadonlyError) or code in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return Denied(f"writing {what}", os.strerror(code or errno.EROFS))
    if code == errno.ENOENT:
        return NotFound("store", str(path.parent))
    return Unavailable(what, str(error))


def _raise(error: Exception, path: Path) -> NoReturn:
    raise _translated(error, path) from error


def _after_fork() -> None:
    """Forget the parent's environments: LMDB allows no use of them in a child, not even closing."""
    global _environments_lock  # noqa: PLW0603  (the parent's lock may be held for ever)
    _environments_lock = threading.Lock()
    _environments.clear()
    _opened_here.clear()
    for engine in list(_engines):
        engine._let_go("it was opened before a fork: open it again in this process")  # noqa: SLF001


os.register_at_fork(after_in_child=_after_fork)
