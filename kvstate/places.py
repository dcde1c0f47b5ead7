"""Where blob files lie: one folder per tier, written with plain system calls.

    <tier>/staging/<name>      being written; the writer holds a lock (flock) on it
    <tier>/<xx>/<name>         published: never written again
    <tier>/kvstate-tier        whose folder this is (`kvstate.tier_folders`)

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
from typing import TYPE_CHECKING

from kvstate.errors import Damaged, Exists, Full, NotFound, StateError, Unavailable
from kvstate.faults import point
from kvstate.settings import TierSettings, format_compression
from kvstate.sizes import format_size
from kvstate.tier_access import Access
from kvstate.tier_folders import STAGING, raise_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from kvstate.tier_folders import Folder, Owner

__all__ = ["Place", "copy_between", "raise_os_error", "start_writing"]

_COPY_BYTES = 1 << 20
_STEP_BYTES = 64 << 20


def _is_same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Say whether two names lead to one file.

    Some file systems give each name a number of its own: there the moment of the last write, and
    the count of names, tell copies of the same content apart.
    """
    facts = (one.st_size, one.st_mtime_ns, one.st_nlink)
    return os.path.samestat(one, other) or (
        one.st_dev == other.st_dev and facts == (other.st_size, other.st_mtime_ns, other.st_nlink)
    )


def _fan(name: str) -> str:
    return name[30:32]


class Place:
    """The folder of one tier. Nothing is touched before its first use.

    A use of a tier that is unavailable raises what `kvstate.tier_access` says.
    """

    def __init__(
        self,
        path: Path,
        *,
        tier: str,
        owner: Owner | None = None,
        settings: TierSettings | None = None,
        read_only: bool = False,
    ) -> None:
        """Take note of the path; without an owner whatever folder lies there is used."""
        settings = settings or TierSettings(free_bytes_min=0)
        self.path = path
        self.compression_level = settings.compression_level
        """The level of zstd for content of this tier; None for as it is."""
        self.free_bytes_min = settings.free_bytes_min
        """What stays free on its file system."""
        self._tier = tier
        self._access = Access(
            path, tier, owner, configured=settings.path is not None, read_only=read_only
        )

    def close(self) -> None:
        """Let go of the folder."""
        self._access.close()

    def prepare(self) -> None:
        """Make what a store has before its first use; for who opens it for writing."""
        self._access.prepare()

    # Room

    def claim(self, size: int) -> int:
        """Ask for room for so many bytes; give what is left above the floor after them.

        `Full` when less than ``free_bytes_min`` would stay free. Nothing is reserved.
        """
        return self._room(self._access.use(), size)

    def free_floor_check(self) -> None:
        """Raise `Full` when less is free than is to stay so; a few microseconds.

        For who writes beside the tier, as the records do: whether the tier answers has no part.
        """
        if self._access.lost is None and self.free_bytes_min:
            with contextlib.suppress(Unavailable):
                self._room(self._access.held, 0)

    def names_like(self, prefix: str) -> list[str]:
        """Give the names of the published files that begin with a blob's identity in hex."""
        folder = self._access.use()
        if folder is None:
            return []
        try:
            return [n for n in os.listdir(folder.sub(_fan(prefix))) if n.startswith(prefix)]  # noqa: PTH208
        except (OSError, NotFound):
            return []

    def space(self) -> os.statvfs_result:
        """Give the state of the file system that it is on, as the system says."""
        return self._access.space(self._access.use())

    def free_bytes(self) -> int:
        """Give the bytes that an ordinary user may still write here."""
        found = self._access.space(self._access.held)
        return found.f_bavail * found.f_frsize

    def _room(self, folder: Folder | None, size: int) -> int:
        found = self._access.space(folder)
        free = found.f_bavail * found.f_frsize
        room = free - self.free_bytes_min - size
        if room < 0:
            wants = f", {format_size(size)} more are wanted" if size else ""
            raise Full(
                self._access.what,
                f"{format_size(free)} are free, {format_size(self.free_bytes_min)} stay so{wants}: "
                f"free some space there, or lower tiers.{self._tier}.free_min",
            )
        return room

    def status(self) -> dict[str, object]:
        """Give what is known of it, as plain values; bytes are None where they are not known."""
        try:
            found = self._access.space(self._access.use())
        except StateError as error:
            return self._status(available=False, reason=str(error))
        return self._status(
            free_bytes=found.f_bavail * found.f_frsize, total_bytes=found.f_blocks * found.f_frsize
        )

    def unknown(self, why: str) -> dict[str, object]:
        """Give what is known of it when it does not answer."""
        return self._status(available=False, reason=str(self._access.away(why)))

    def _status(self, **found: object) -> dict[str, object]:
        status: dict[str, object] = {
            "path": str(self.path),
            "available": True,
            "reason": "",
            "free_bytes": None,
            "total_bytes": None,
            "compression": format_compression(self.compression_level),
            "free_min": self.free_bytes_min,
        }
        return {**status, **found}

    # Files

    def create(self, name: str) -> int:
        """Make a staging file, locked by this process; give its descriptor.

        `Exists` when there is one: `wait` for it. Not within a transaction: the first one of a tier
        commits whose folder it is.
        """
        self.claim(0)
        folder = self._access.own()
        staging = folder.sub(STAGING, create=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=staging)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                linked = os.fstat(fd).st_nlink
            except BaseException:
                os.close(fd)
                raise
            if linked:
                return fd
        except FileExistsError:
            raise Exists("file", str(self.path / STAGING / name)) from None
        except FileNotFoundError as error:
            raise self._access.away("its staging folder is gone: open the store again") from error
        except OSError as error:
            raise_os_error(error, str(self.path / STAGING / name))
        os.close(fd)  # a sweep took it for a leftover before it was locked
        return self.create(name)

    def wait(self, name: str) -> None:
        """Wait until whoever has a staging file of this name is done with it, or is dead."""
        with contextlib.suppress(OSError, StateError):
            folder = self._access.own()
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=folder.sub(STAGING))
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            finally:
                os.close(fd)

    def publish(self, name: str, fd: int) -> None:
        """Make a staged file durable under its final name; the staging name stays as a note.

        `Exists` when there is a file of this name, which is left alone.
        """
        folder = self._access.own()
        try:
            os.fsync(fd)
            point("synced")
            final = folder.sub(_fan(name), create=True)
            staging = folder.sub(STAGING)
            noted, written = os.stat(name, dir_fd=staging, follow_symlinks=False), os.fstat(fd)
            if not os.path.samestat(noted, written):
                raise self._access.away(
                    "its folder was replaced while this was written", retry=True
                )
            os.link(name, name, src_dir_fd=staging, dst_dir_fd=final, follow_symlinks=False)
            point("linked")
            os.fsync(final)
        except FileExistsError:
            raise Exists("file", self.name_of(name)) from None
        except OSError as error:
            raise_os_error(error, self.name_of(name))

    def settle(self, name: str) -> None:
        """Drop the staging name: the file is committed, or was discarded."""
        with contextlib.suppress(OSError, StateError):
            folder = self._access.use()
            if folder is not None:
                os.unlink(name, dir_fd=folder.sub(STAGING))

    def withdraw(self, name: str, fd: int | None = None) -> None:
        """Take a file back that no record names; where that fails, its note tells of it."""
        with contextlib.suppress(StateError):
            self.remove(name, fd)
            self.settle(name)

    def remove(self, name: str, fd: int | None = None) -> bool:
        """Remove a published file; say whether it was there.

        With a descriptor only if it is that very file: another writer's may have its name.
        """
        folder = self._access.use()
        if folder is None:
            return False
        try:
            final = folder.sub(_fan(name))
            if fd is not None:
                there = os.stat(name, dir_fd=final, follow_symlinks=False)
                if not _is_same_file(there, os.fstat(fd)):
                    return False
            os.unlink(name, dir_fd=final)
        except (FileNotFoundError, NotFound):
            return False
        except OSError as error:
            raise_os_error(error, self.name_of(name))
        return True

    def sync_removed(self, names: Iterable[str]) -> None:
        """Make it durable that these files are gone: until then a power cut may bring them back."""
        fans = {_fan(name) for name in names}
        folder = self._access.use() if fans else None
        if folder is None:
            return
        for fan in fans:
            try:
                os.fsync(folder.sub(fan))
            except NotFound:
                continue  # their folder is gone, too
            except OSError as error:
                raise_os_error(error, str(self.path / fan))

    def open(self, name: str) -> int:
        """Open a published file for reading; `NotFound` when it is not there."""
        folder = self._access.use()
        if folder is None:
            raise NotFound("file", self.name_of(name))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=folder.sub(_fan(name)))
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
            folder = self._access.use()
            if folder is None:
                return False
            os.stat(name, dir_fd=folder.sub(STAGING), follow_symlinks=False)
        except (OSError, StateError):
            return False
        return True

    def leftovers(self) -> Iterator[tuple[str, int]]:
        """Give the staging files of dead writers, each locked; close each descriptor."""
        try:
            folder = self._access.use()
            if folder is None or os.fstatvfs(folder.root).f_flag & os.ST_RDONLY:
                return
            staging = folder.sub(STAGING)
            names = os.listdir(staging)  # noqa: PTH208  (a descriptor, not a path)
        except (StateError, OSError):
            return  # none was made yet, or the tier does not answer: then nothing is taken away
        for name in names:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging)
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
        folder = self._access.use()
        if folder is None:
            return
        try:
            for name in folder.names():
                if name != STAGING:
                    yield from _files_in(folder, name)
        except OSError as error:
            raise_os_error(error, self._access.what)


def _files_in(folder: Folder, name: str) -> Iterator[tuple[str, int]]:
    try:
        fd = folder.sub(name)
    except StateError:
        yield name, -1
        return
    with os.scandir(fd) as found:
        for item in found:
            plain = item.is_file(follow_symlinks=False)
            try:
                size = item.stat(follow_symlinks=False).st_size if plain else -1
            except FileNotFoundError:
                continue
            yield item.name, size


def start_writing(fd: int, offset: int, size: int) -> None:
    """Let the disk begin with what was just written there: the sync has less to wait for then.

    A whim of the kernel's is used: advice that a range is not needed any more starts its way to the
    disk and drops what is clean; what is being written stays in the page cache.
    """
    with contextlib.suppress(OSError):  # a pipe, or a file system that knows no advice
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def copy_between(
    source: int, target: int, size: int, told: Callable[[int], None] | None = None
) -> None:
    """Copy so many bytes between descriptors, in the kernel where it can (reflinks included).

    Holes stay holes. ``told`` is called with the bytes of each step, if somebody wants to know.
    """
    done = 0
    while done < size:
        try:
            begin = os.lseek(source, done, os.SEEK_DATA)
            end = min(size, os.lseek(source, begin, os.SEEK_HOLE))
        except OSError as error:
            # ENXIO: nothing but a hole is left; EINVAL: a file system that knows none.
            begin, end = (size, size) if error.errno == errno.ENXIO else (done, size)
        begin = min(begin, size)
        if told is not None and begin > done:
            told(begin - done)
        _copy_data(source, target, begin, end, told)
        done = end
    if os.fstat(target).st_size < size:
        os.ftruncate(target, size)


def _copy_data(
    source: int, target: int, done: int, size: int, told: Callable[[int], None] | None
) -> None:
    """Copy the bytes from one offset to another."""
    while done < size:
        try:
            count = os.copy_file_range(source, target, min(_STEP_BYTES, size - done), done, done)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
            break
        if not count:
            break
        start_writing(target, done, count)
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
