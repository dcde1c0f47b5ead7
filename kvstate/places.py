"""Where blob files lie: one folder per tier, written with plain system calls.

    <tier>/staging/<name>      being written; the writer holds a lock (flock) on it
    <tier>/<xx>/<name>         published: never written again

A name is the blob's identity (32 hex digits) and its generation (4): a blob that comes back to a
tier gets another name there. <xx> are digits 31 and 32, so that one moment's files spread.

A file is published by a second name (link), so the name in ``staging/`` is a note of what is under
way: it goes only after the records were committed. Whatever lies in ``staging/`` without a lock was
left by a dead writer; `leftovers` lists it, and the records say whether it was committed. So a
crash leaves nothing that has to be searched for.

Folders are held open and names are looked up relative to them without following links: what someone
else plants in here leads nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, NoReturn

from kvstate.errors import Damaged, Denied, Full, NotFound, StateError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["Place", "copy_between", "raise_os_error"]

_STAGING = "staging"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20
_TOLD_BYTES = 64 << 20


def raise_os_error(error: OSError, what: str) -> NoReturn:
    """Raise the store's error for a system error on this file."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise Full(what, f"{os.strerror(error.errno)}: free some space, then go on") from error
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        raise Denied(f"writing {what}", os.strerror(error.errno)) from error
    if error.errno == errno.ELOOP:
        raise Damaged(what, "a link lies where a file should be") from error
    if error.errno == errno.ENOENT:
        raise NotFound("file", what) from error
    raise Unavailable(what, error.strerror or str(error)) from error


def _fan(name: str) -> str:
    return name[30:32]


class Place:
    """The folder of one tier."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Open the folder; make it first when ``create`` is on."""
        self.path = path
        self._folders: dict[str, int] = {}
        try:
            if create:
                path.mkdir(mode=0o700, exist_ok=True)
            self._root = os.open(path, _FOLDER)
        except OSError as error:
            raise_os_error(error, str(path))

    def close(self) -> None:
        """Let go of the folders."""
        for fd in (*self._folders.values(), self._root):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._folders.clear()

    def _folder(self, name: str, *, create: bool = False) -> int:
        fd = self._folders.get(name)
        if fd is not None:
            return fd
        try:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=self._root)
                    os.fsync(self._root)
            fd = os.open(name, _FOLDER, dir_fd=self._root)
        except OSError as error:
            raise_os_error(error, str(self.path / name))
        kept = self._folders.setdefault(name, fd)
        if kept != fd:
            os.close(fd)
        return kept

    def create(self, name: str) -> int:
        """Make a staging file, locked by this process; give its descriptor."""
        folder = self._folder(_STAGING, create=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=folder)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd
        except FileNotFoundError as error:
            raise Unavailable(str(self.path), "its staging folder is gone") from error
        except OSError as error:
            raise_os_error(error, str(self.path / _STAGING / name))
        os.close(fd)  # a sweep took it for a leftover before it was locked
        return self.create(name)

    def publish(self, name: str, fd: int) -> None:
        """Make a staged file durable under its final name; the staging name stays as a note."""
        try:
            os.fsync(fd)
            final = self._folder(_fan(name), create=True)
            staging = self._folder(_STAGING)
            os.link(name, name, src_dir_fd=staging, dst_dir_fd=final, follow_symlinks=False)
            os.fsync(final)
        except OSError as error:
            raise_os_error(error, self.name_of(name))

    def settle(self, name: str) -> None:
        """Drop the staging name: the file is committed, or was discarded."""
        with contextlib.suppress(OSError, StateError):
            os.unlink(name, dir_fd=self._folder(_STAGING))

    def remove(self, name: str) -> bool:
        """Remove a published file; say whether it was there."""
        try:
            os.unlink(name, dir_fd=self._folder(_fan(name)))
        except (FileNotFoundError, NotFound):
            return False
        except OSError as error:
            raise_os_error(error, self.name_of(name))
        return True

    def sync_removed(self, names: Iterable[str]) -> None:
        """Make it durable that these files are gone: until then a power cut may bring them back."""
        for fan in {_fan(name) for name in names}:
            try:
                os.fsync(self._folder(fan))
            except NotFound:
                continue  # their folder is gone, too
            except OSError as error:
                raise_os_error(error, str(self.path / fan))

    def open(self, name: str) -> int:
        """Open a published file for reading; `NotFound` when it is not there."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self._folder(_fan(name)))
        except OSError as error:
            raise_os_error(error, self.name_of(name))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Damaged(self.name_of(name), "it is no ordinary file")
        return fd

    def name_of(self, name: str) -> str:
        """Give the path of a published file, for people."""
        return str(self.path / _fan(name) / name)

    def is_staged(self, name: str) -> bool:
        """Say whether a note in the staging folder bears this name."""
        try:
            os.stat(name, dir_fd=self._folder(_STAGING), follow_symlinks=False)
        except (OSError, StateError):
            return False
        return True

    def leftovers(self) -> Iterator[tuple[str, int]]:
        """Give the staging files of dead writers, each locked; close each descriptor."""
        try:
            folder = self._folder(_STAGING)
        except StateError:
            return  # none was made yet, or the tier does not answer: then nothing is taken away
        for name in os.listdir(folder):  # noqa: PTH208  (a descriptor, not a path)
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            except OSError:
                continue  # settled meanwhile, or a link that someone planted
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)  # its writer lives
            else:
                yield name, fd

    def files(self) -> Iterator[tuple[str, int]]:
        """Give the names and sizes of all published files, and of what else lies among them."""
        for folder in sorted(os.listdir(self._root)):  # noqa: PTH208  (a descriptor)
            if folder == _STAGING:
                continue
            try:
                fd = self._folder(folder)
            except StateError:
                yield folder, -1
                continue
            with os.scandir(fd) as found:
                for item in found:
                    plain = item.is_file(follow_symlinks=False)
                    try:
                        size = item.stat(follow_symlinks=False).st_size if plain else -1
                    except FileNotFoundError:
                        continue
                    yield item.name, size

    def free_bytes(self) -> int:
        """Give the bytes that an ordinary user may still write here."""
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize


def copy_between(
    source: int, target: int, size: int, told: Callable[[int], None] | None = None
) -> None:
    """Copy so many bytes between descriptors, in the kernel where it can (reflinks included).

    ``told`` is called with the bytes of each step, if somebody wants to know.
    """
    done = 0
    step = size if told is None else _TOLD_BYTES
    while done < size:
        try:
            count = os.copy_file_range(source, target, min(step, size - done), done, done)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
            break
        if not count:
            break
        done += count
        if told is not None:
            told(count)
    while done < size:
        data = os.pread(source, min(_COPY_BYTES, size - done), done)
        if not data:
            raise OSError(errno.EIO, "the file ended early")
        if told is not None:
            told(len(data))
        view = memoryview(data)
        while view:
            count = os.pwrite(target, view, done)
            view = view[count:]
            done += count
