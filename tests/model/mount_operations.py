"""Operations on two folders at once, every result compared: a mount, and a folder of the kernel's.

An operation is a plain tuple, so that a run can be written down, played again and cut down to what
matters. `Folder` carries one out; `Pair` does so on both sides and says whether they agree;
`Chooser` makes operations up. What the mount documents as different is modelled here, and nothing
else: content is stored on close, so who reads beside a writer may see any version since the last
one that was stored, whole.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_UTIME_OMIT = (1 << 30) - 2
EXPLICIT_NS = 1_500_000_000 * 10**9
"""Times that operations set are before this one, and times that pass are after it."""
NOREPLACE, EXCHANGE = 1, 2
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16
VERSIONS_MAX = 60
AS_ROOT = os.geteuid() == 0

NAMES = ("a", "b", "c", "d", "e f", "ü", "x.tmp", ".h")
SIZES = (0, 1, 10, 100, 1000, 4095, 4096, 4097, 10_000, 65_536, 70_000, 131_072, 200_000)
OFFSETS = (0, 0, 0, 1, 100, 4090, 4096, 8192, 60_000, 65_536, 140_000)
FLAGS = (
    os.O_RDONLY,
    os.O_RDONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    os.O_RDWR | os.O_TRUNC,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_CREAT | os.O_APPEND,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_RDONLY | os.O_NOFOLLOW,
)


class Different(AssertionError):
    """The two sides do not agree: about what, and what each says."""

    def __init__(self, what, mine, theirs) -> None:
        self.kind = what[0] if isinstance(what, tuple) else what.partition(" ")[0]
        super().__init__(f"{what}:\n  mount: {shortened(mine)}\n  other: {shortened(theirs)}")


class timespec(ctypes.Structure):  # noqa: N801  (its name in C)
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def rename2(source, target, flags):
    """renameat2(2), which Python does not have."""
    _checked(
        _LIBC.renameat2(
            _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)
        )
    )


def fallocate(fd, mode, offset, length):
    """fallocate(2) itself: the C library makes up for nothing here."""
    _checked(_LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def set_mtime_only(path, at_ns):
    """utimensat(2) with UTIME_OMIT for the other time."""
    times = (timespec * 2)(timespec(0, _UTIME_OMIT), timespec(at_ns // 10**9, at_ns % 10**9))
    _checked(_LIBC.utimensat(_AT_FDCWD, os.fsencode(path), times, 0x100))


def pattern(seed, size):
    """Give bytes that are recognized in a dump: no two writes write the same."""
    unit = f"<{seed}>".encode()
    return (unit * (size // len(unit) + 1))[:size]


def own_attributes(path):
    """Give the extended attributes that somebody set."""
    names = os.listxattr(path, follow_symlinks=False)
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(names)
        if name.startswith("user.") and not name.startswith("user.kvstate.")
    }


class Folder:
    """One side: a folder and the files that are open in it."""

    def __init__(self, root) -> None:
        self.root = str(root)
        self.fds = {}

    def do(self, operation):
        """Carry out an operation; give what it gave, or the name of its errno."""
        name, *arguments = operation
        try:
            return getattr(self, f"do_{name}")(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno]

    def path(self, relative):
        return os.path.join(self.root, relative)  # noqa: PTH118  (paths as they were made up)

    def close_all(self):
        for fd in self.fds.values():
            with suppress(OSError):
                os.close(fd)
        self.fds.clear()

    # --- names

    def do_mkdir(self, path, mode):
        os.mkdir(self.path(path), mode)  # noqa: PTH102

    def do_rmdir(self, path):
        os.rmdir(self.path(path))  # noqa: PTH106

    def do_unlink(self, path):
        os.unlink(self.path(path))  # noqa: PTH108

    def do_symlink(self, target, path):
        os.symlink(target, self.path(path))  # noqa: PTH211

    def do_readlink(self, path):
        return os.readlink(self.path(path))  # noqa: PTH115

    def do_rename(self, source, target, flags):
        rename2(self.path(source), self.path(target), flags)

    def do_list(self, path):
        with os.scandir(self.path(path)) as found:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)

    # --- attributes

    def do_stat(self, path):
        return described(os.lstat(self.path(path)))

    def do_access(self, path, mode):
        return os.access(self.path(path), mode)

    def do_chmod(self, path, mode):
        os.chmod(self.path(path), mode)  # noqa: PTH101

    def do_chown(self, path, uid, gid):
        os.chown(self.path(path), uid, gid, follow_symlinks=False)

    def do_utime(self, path, atime_ns, mtime_ns):
        os.utime(self.path(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)
        found = os.lstat(self.path(path))
        return found.st_atime_ns, found.st_mtime_ns

    def do_mtime(self, path, mtime_ns):
        set_mtime_only(self.path(path), mtime_ns)
        return os.lstat(self.path(path)).st_mtime_ns

    def do_setxattr(self, path, name, value, flags):
        os.setxattr(self.path(path), name, value, flags, follow_symlinks=False)

    def do_removexattr(self, path, name):
        os.removexattr(self.path(path), name, follow_symlinks=False)

    def do_xattrs(self, path):
        return own_attributes(self.path(path))

    # --- whole files, by name

    def do_truncate(self, path, size):
        os.truncate(self.path(path), size)

    def do_read_file(self, path):
        fd = os.open(self.path(path), os.O_RDONLY)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                return "a folder"
            found = b""
            while more := os.read(fd, 1 << 20):
                found += more
            return found
        finally:
            os.close(fd)

    def do_write_file(self, path, seed, size):
        fd = os.open(self.path(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            return os.write(fd, pattern(seed, size))
        finally:
            os.close(fd)

    def do_append_file(self, path, seed, size):
        fd = os.open(self.path(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            return os.write(fd, pattern(seed, size))
        finally:
            os.close(fd)

    # --- open files, by number

    def do_open(self, number, path, flags, mode):
        self.fds[number] = os.open(self.path(path), flags, mode)

    def do_close(self, number):
        os.close(self.fds.pop(number))

    def do_read(self, number, offset, size):
        return os.pread(self.fds[number], size, offset)

    def do_write(self, number, offset, seed, size):
        return os.pwrite(self.fds[number], pattern(seed, size), offset)

    def do_ftruncate(self, number, size):
        os.ftruncate(self.fds[number], size)

    def do_fsync(self, number):
        os.fsync(self.fds[number])

    def do_fstat(self, number):
        return described(os.fstat(self.fds[number]))

    def do_fchmod(self, number, mode):
        os.fchmod(self.fds[number], mode)

    def do_same(self, number, path):
        return os.path.samestat(os.fstat(self.fds[number]), os.lstat(self.path(path)))

    def do_fallocate(self, number, mode, offset, length):
        fallocate(self.fds[number], mode, offset, length)

    def do_seek(self, number, offset, whence):
        return os.lseek(self.fds[number], offset, whence)

    def do_copy(self, source, target, source_offset, target_offset, size):
        done = 0
        while done < size:
            step = os.copy_file_range(
                self.fds[source],
                self.fds[target],
                size - done,
                source_offset + done,
                target_offset + done,
            )
            if step == 0:
                break
            done += step
        return done

    def do_map_read(self, number, shared):
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        size = os.fstat(self.fds[number]).st_size
        if not stat.S_ISREG(os.fstat(self.fds[number]).st_mode):
            return "ENODEV"
        if size == 0:
            return b""
        with mmap.mmap(self.fds[number], size, flags=flags, prot=mmap.PROT_READ) as mapped:
            return mapped[:]

    def do_map_write(self, number, offset, seed, size):
        length = os.fstat(self.fds[number]).st_size
        if offset + size > length or length == 0:
            return "too short"
        with mmap.mmap(self.fds[number], length) as mapped:
            mapped[offset : offset + size] = pattern(seed, size)
            mapped.flush()
        return size


def described(found):
    """Give what of a `stat` has to be the same on both sides."""
    kind = stat.S_IFMT(found.st_mode)
    mtime = None
    if kind == stat.S_IFREG:
        mtime = found.st_mtime_ns if found.st_mtime_ns < EXPLICIT_NS else "passed"
    return {
        "mode": oct(found.st_mode),
        "owner": (found.st_uid, found.st_gid),
        "size": None if kind == stat.S_IFDIR else found.st_size,
        "links": None if kind == stat.S_IFDIR else found.st_nlink,
        "mtime": mtime,
    }


class Content:
    """What is known of a file while somebody has it open: the versions that a reader may see."""

    def __init__(self, data) -> None:
        self.versions = [data]
        self.stored = 0
        self.dirty = False
        self.emptied = False
        self.written = False
        self.handles = set()

    def changed(self, data, *, emptied=False):
        self.dirty = self.written = True
        self.emptied = emptied
        if data != self.versions[-1]:
            self.versions.append(data)

    def settled(self):
        self.dirty = False
        self.stored = len(self.versions) - 1


class Handle(NamedTuple):
    """An open file: its flags, its number on the other side, the first version that it may see."""

    flags: int
    inode: int
    since: int
    content: Content | None

    @property
    def writes(self):
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class Pair:
    """The two folders, and what may differ between them."""

    def __init__(self, mine, theirs, adapter) -> None:
        self.mine = Folder(mine)
        self.theirs = Folder(theirs)
        self.adapter = adapter
        self.handles = {}
        self.contents = {}
        self.opened = 0

    def do(self, operation):
        """Do it on both sides; `Different` says how they differ. Give what it gave."""
        name = operation[0]
        if any(number not in self.handles for number in self._numbers(operation)):
            return None  # in a run that was cut down
        before = self._before(operation)
        mine = self.mine.do(operation)
        if (refusal := self._refused(operation)) is not None and mine == refusal:
            return mine
        theirs = self._theirs(operation)
        agree = getattr(self, f"agree_{name}", self._agree)
        if not agree(operation, mine, theirs, before):
            raise Different(operation, mine, theirs)
        self._after(operation, theirs, before)
        return theirs

    def _numbers(self, operation):
        name, *arguments = operation
        if name == "copy":
            return arguments[:2]
        if name in BY_NUMBER:
            return arguments[:1]
        return ()

    def _theirs(self, operation):
        """Do it on the other side; what a tmpfs cannot do is done in its place."""
        name, *arguments = operation
        if name == "fallocate" and arguments[1] & ZERO_RANGE:
            done = self._zeroed(*arguments)
        else:
            done = self.theirs.do(operation)
        if name in {"fallocate", "ftruncate", "truncate"} and done is None:
            self._take_time(name, arguments[0])
        return done

    def _zeroed(self, number, mode, offset, length):
        fd = self.theirs.fds[number]
        if not self.handles[number].writes:
            return "EBADF"
        size = os.fstat(fd).st_size
        end = min(offset + length, size) if mode & KEEP_SIZE else offset + length
        if end > size:
            os.ftruncate(fd, end)
        with suppress(OSError):
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, max(end - offset, 1))
        return None

    def _take_time(self, name, file):
        """Take the mount's time: what leaves size and bytes alone is a change, or is none."""
        mine, theirs = (
            side.path(file) if name == "truncate" else side.fds[file]
            for side in (self.mine, self.theirs)
        )
        with suppress(OSError):
            found = os.stat(mine)  # noqa: PTH116  (a descriptor, too)
            os.utime(theirs, ns=(found.st_atime_ns, found.st_mtime_ns))

    def _refused(self, operation):
        """Give the errno that this adapter may answer for what it does not have."""
        if self.adapter != "fusepy":
            return None
        name, *arguments = operation
        if name == "rename" and arguments[2]:
            return "EINVAL"  # libfuse 2 knows no flags
        if name in {"fstat", "fchmod", "same"} and self._is_removed_folder(arguments[0]):
            return "ESTALE"
        if name == "ftruncate" and os.fstat(self.theirs.fds[arguments[0]]).st_nlink == 0:
            return "ESTALE"  # libfuse's path API: a file without a name
        if name == "map_write" or (name == "map_read" and arguments[1]):
            return "ENODEV"  # pages belong to a name, not to a content
        return None

    def _is_removed_folder(self, number):
        found = os.fstat(self.theirs.fds[number])
        return stat.S_ISDIR(found.st_mode) and found.st_nlink < 2

    # --- what a reader may see

    def _inode(self, path):
        """Give the other side's number of the regular file that a path leads to."""
        with suppress(OSError):
            found = Path(self.theirs.path(path)).stat()
            if stat.S_ISREG(found.st_mode):
                return found.st_ino
        return None

    def _before(self, operation):
        """Give what has to be known from before: which file a name leads to, and its content."""
        name, *arguments = operation
        if name == "read_file":
            return self._inode(arguments[0])
        if name == "open" and arguments[2] & os.O_TRUNC:
            with suppress(OSError):
                return Path(self.theirs.path(arguments[1])).read_bytes()
        return None

    def _data(self, inode):
        """Give the other side's content of a file that is open."""
        number = next(iter(self.contents[inode].handles))
        fd = self.theirs.fds[number]
        name = f"/proc/self/fd/{fd}"
        again = os.open(name, os.O_RDONLY)
        try:
            return os.pread(again, os.fstat(again).st_size, 0)
        finally:
            os.close(again)

    def _after(self, operation, theirs, before):
        name, *arguments = operation
        if name == "open" and theirs is None:
            self._opened(*arguments, before)
        elif name == "close":
            self._closed(arguments[0])
        elif name == "fsync" and theirs is None:
            self._settle(self.handles[arguments[0]].inode)
        elif name in CHANGING and not _is_errno(theirs) and theirs != 0:
            self._changed(self.handles[arguments[0]].inode)
        elif name == "copy" and not _is_errno(theirs):
            self._changed(self.handles[arguments[1]].inode)
        elif name == "truncate" and theirs is None:
            inode = self._inode(arguments[0])
            self._changed(inode)
            self._settle(inode)
        elif name == "write_file" and not _is_errno(theirs):
            inode = self._inode(arguments[0])
            self._changed(inode, emptied=theirs == 0)
            self._writer_closed(inode)
        elif name == "append_file" and not _is_errno(theirs):
            inode = self._inode(arguments[0])
            if theirs:
                self._changed(inode)
            self._writer_closed(inode)

    def _opened(self, number, _path, flags, _mode, before):
        found = os.fstat(self.theirs.fds[number])
        if not stat.S_ISREG(found.st_mode):
            self.handles[number] = Handle(flags, found.st_ino, 0, None)
            return
        inode = found.st_ino
        if inode not in self.contents:
            content = self.contents[inode] = Content(b"")
            content.handles.add(number)
            content.versions = [self._data(inode) if before is None else before]
        content = self.contents[inode]
        content.handles.add(number)
        self.handles[number] = Handle(flags, inode, content.stored, content)
        content.written = content.written or self.handles[number].writes
        if flags & os.O_TRUNC:
            self._changed(inode, emptied=True)

    def _closed(self, number):
        handle = self.handles.pop(number)
        if handle.content is None:
            return
        handle.content.handles.discard(number)
        if not handle.content.handles:
            del self.contents[handle.inode]
        elif handle.writes:
            self._writer_closed(handle.inode)

    def _writer_closed(self, inode):
        """Store, unless this process writes on to what is still empty (docs/mount.md)."""
        if (content := self.contents.get(inode)) is None:
            return
        writers = any(self.handles[number].writes for number in content.handles)
        if not (content.emptied and writers):
            content.settled()

    def _changed(self, inode, *, emptied=False):
        if (content := self.contents.get(inode)) is not None:
            content.changed(self._data(inode), emptied=emptied)

    def _settle(self, inode):
        if (content := self.contents.get(inode)) is not None:
            content.settled()

    def _seen(self, number):
        """Give the versions that a reader may see; None for who must see the one that is."""
        handle = self.handles[number]
        if handle.writes or handle.content is None:
            return None
        return handle.content.versions[handle.since :]

    def _torn(self, versions):
        """Whether a reader may find another end than its content has: docs/mount.md, fusepy."""
        return self.adapter == "fusepy" and len(versions) > 1

    # --- agreeing

    def _agree(self, _operation, mine, theirs, _before):
        return mine == theirs

    def agree_read(self, operation, mine, theirs, _before):
        versions = self._seen(operation[1])
        if versions is None or _is_errno(theirs):
            return mine == theirs
        if self._torn(versions):
            return not _is_errno(mine)
        _, _, offset, size = operation
        return any(mine == version[offset : offset + size] for version in versions)

    def agree_map_read(self, operation, mine, theirs, _before):
        versions = self._seen(operation[1])
        if versions is None or _is_errno(theirs):
            return mine == theirs
        return mine in versions or (self._torn(versions) and not _is_errno(mine))

    def agree_read_file(self, _operation, mine, theirs, before):
        content = self.contents.get(before)
        if content is None or _is_errno(theirs):
            return mine == theirs
        if not content.dirty:
            return mine == theirs
        return mine in content.versions[content.stored :]

    def agree_fstat(self, operation, mine, theirs, _before):
        """Agree; of a removed file, mode, owner and times are those of when it was opened."""
        if not _is_errno(mine) and not _is_errno(theirs) and theirs["links"] == 0:
            known = {name: theirs[name] for name in ("mode", "owner", "mtime")}
            mine = mine | known
        versions = self._seen(operation[1])
        if versions is None:
            return mine == theirs
        if self._torn(versions):
            return not _is_errno(mine)
        if _is_errno(mine) or mine["size"] not in {len(version) for version in versions}:
            return False  # and who reads beside a writer has the attributes of when it began
        written = self.handles[operation[1]].content.written
        return written or mine | {"size": None} == theirs | {"size": None}

    def agree_seek(self, operation, mine, theirs, _before):
        """Holes may be larger or smaller, but in a hole there is nothing."""
        _, number, offset, whence = operation
        if whence not in {os.SEEK_DATA, os.SEEK_HOLE} or self._seen(number) is not None:
            return mine == theirs or self._seen(number) is not None
        if self.handles[number].content is None:
            return True
        data = self._data(self.handles[number].inode)
        if _is_errno(mine) or _is_errno(theirs):
            hidden = mine == "ENXIO" and whence == os.SEEK_DATA and not any(data[offset:])
            found = theirs == "ENXIO" and whence == os.SEEK_DATA and not _is_errno(mine)
            return mine == theirs or hidden or (found and offset <= mine < len(data))
        if whence == os.SEEK_DATA:
            return offset <= mine < len(data) and not any(data[offset:mine])
        return offset <= mine <= len(data)

    def agree_utime(self, operation, mine, theirs, _before):
        """A folder has one time."""
        if not _is_errno(mine) and Path(self.theirs.path(operation[1])).is_dir():
            return not _is_errno(theirs) and mine[1] == theirs[1]
        return mine == theirs

    def agree_copy(self, operation, mine, theirs, _before):
        """Who copies from what is only read copies a version that it may see."""
        return mine == theirs

    def close(self):
        self.mine.close_all()
        self.theirs.close_all()
        self.handles.clear()
        self.contents.clear()


CHANGING = {"write", "ftruncate", "fallocate", "map_write"}
BY_NUMBER = {
    "close",
    "read",
    "write",
    "ftruncate",
    "fsync",
    "fstat",
    "fchmod",
    "same",
    "fallocate",
    "seek",
    "map_read",
    "map_write",
}


def _is_errno(result):
    return isinstance(result, str) and result.startswith("E")


def shortened(result):
    """Give a result as a line that can be read."""
    text = repr(result)
    return text if len(text) < 300 else f"{text[:200]}... {len(text)} characters ...{text[-60:]}"


def compare_trees(mine, theirs):
    """See that two trees are the same to the last byte and attribute; give how many names."""
    names = sorted(_tree(theirs))
    if (found := sorted(_tree(mine))) != names:
        raise Different("names of the tree", set(found) - set(names), set(names) - set(found))
    for name in names:
        for what in ("stat", "xattrs", "content"):
            ours, other = (_looked_at(os.path.join(root, name), what) for root in (mine, theirs))  # noqa: PTH118
            if ours != other:
                raise Different(f"{what} of {name}", ours, other)
    return len(names)


def _tree(root):
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            yield os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118


def _looked_at(path, what):
    found = os.lstat(path)
    if what == "stat":
        return described(found)
    if what == "xattrs":
        return own_attributes(path)
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)  # noqa: PTH115
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    return None


class Chooser:
    """Makes operations up, so that they often meet each other."""

    def __init__(self, pair, chance) -> None:
        self.pair = pair
        self.chance = chance
        self.seed = 0

    def operation(self):
        """Give the next one."""
        names, weights = zip(*WEIGHTS.items(), strict=True)
        while True:
            (name,) = self.chance.choices(names, weights)
            if (made := getattr(self, f"make_{name}")()) is not None:
                return made

    # --- parts

    def _folders(self):
        root = self.pair.theirs.root
        found = [""]
        for folder, folders, _ in os.walk(root):
            found += [os.path.relpath(os.path.join(folder, name), root) for name in folders]  # noqa: PTH118
        return found

    def _new(self):
        folders = [path for path in self._folders() if path.count("/") < 2]
        return os.path.join(self.chance.choice(folders), self.chance.choice(NAMES))  # noqa: PTH118

    def _any(self):
        chance = self.chance.random()
        if chance < 0.25:
            return self._new()
        if chance < 0.28:
            return self._new() + "/" + self.chance.choice(NAMES)
        found = list(_tree(self.pair.theirs.root))
        return self.chance.choice(found) if found else self._new()

    def _number(self, *, writes=None):
        found = [
            number
            for number, handle in self.pair.handles.items()
            if writes is None or handle.writes == writes
        ]
        return self.chance.choice(found) if found else None

    def _seed(self):
        self.seed += 1
        return self.seed

    def _mode(self):
        return self.chance.choice((0o644, 0o600, 0o755, 0o640, 0o664, 0o777))

    def _time(self):
        return self.chance.randrange(1, EXPLICIT_NS)

    # --- names

    def make_mkdir(self):
        return ("mkdir", self._new(), self._mode() | 0o700)

    def make_rmdir(self):
        return ("rmdir", self._any())

    def make_unlink(self):
        return ("unlink", self._any())

    def make_symlink(self):
        target = self.chance.choice([*NAMES, "nowhere", "a/b", "../a"])
        return ("symlink", target, self._new())

    def make_readlink(self):
        return ("readlink", self._any())

    def make_rename(self):
        flags = self.chance.choice((0, 0, 0, 0, NOREPLACE, EXCHANGE, NOREPLACE | EXCHANGE))
        return ("rename", self._any(), self._any(), flags)

    def make_list(self):
        return ("list", self._any())

    # --- attributes

    def make_stat(self):
        return ("stat", self._any())

    def make_access(self):
        return ("access", self._any(), self.chance.choice((os.F_OK, os.R_OK, os.X_OK)))

    def make_chmod(self):
        path = self._any()
        kind = 0o700 if os.path.isdir(self.pair.theirs.path(path)) else 0  # noqa: PTH112
        return ("chmod", path, self._mode() | kind)

    def make_chown(self):
        if not AS_ROOT:
            return None
        ids = (0, 1, 1000, 65_534, -1)
        return ("chown", self._any(), self.chance.choice(ids), self.chance.choice(ids))

    def make_utime(self):
        return ("utime", self._any(), self._time(), self._time())

    def make_mtime(self):
        return ("mtime", self._any(), self._time())

    def make_setxattr(self):
        name = self.chance.choice(("user.a", "user.b", "user.ü"))
        value = pattern(self._seed(), self.chance.choice((0, 5, 200, 3000)))
        flags = self.chance.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        return ("setxattr", self._any(), name, value, flags)

    def make_removexattr(self):
        return ("removexattr", self._any(), self.chance.choice(("user.a", "user.b", "user.ü")))

    def make_xattrs(self):
        return ("xattrs", self._any())

    # --- whole files

    def make_truncate(self):
        return ("truncate", self._any(), self.chance.choice(SIZES))

    def make_read_file(self):
        return ("read_file", self._any())

    def make_write_file(self):
        return ("write_file", self._any(), self._seed(), self.chance.choice(SIZES))

    def make_append_file(self):
        return ("append_file", self._any(), self._seed(), self.chance.choice(SIZES[:9]))

    # --- open files

    def make_open(self):
        if len(self.pair.handles) > 7:
            return None
        self.pair.opened += 1
        flags = self.chance.choice(FLAGS)
        return ("open", self.pair.opened, self._any(), flags, self._mode())

    def make_close(self):
        return self._of_handle("close")

    def _of_handle(self, name, *arguments, writes=None):
        number = self._number(writes=writes)
        return None if number is None else (name, number, *arguments)

    def make_read(self):
        size = self.chance.choice(SIZES)
        return self._of_handle("read", self.chance.choice(OFFSETS), size)

    def make_write(self):
        size = self.chance.choice(SIZES)
        writes = True if self.chance.random() < 0.95 else None
        return self._of_handle(
            "write", self.chance.choice(OFFSETS), self._seed(), size, writes=writes
        )

    def make_ftruncate(self):
        return self._of_handle("ftruncate", self.chance.choice(SIZES), writes=True)

    def make_fsync(self):
        return self._of_handle("fsync")

    def make_fstat(self):
        return self._of_handle("fstat")

    def make_fchmod(self):
        """Set a mode; a file that was removed is left out, where it is accepted and forgotten."""
        number = self._number()
        if number is None or os.fstat(self.pair.theirs.fds[number]).st_nlink == 0:
            return None
        return ("fchmod", number, self._mode() | 0o700)

    def make_same(self):
        return self._of_handle("same", self._any())

    def make_fallocate(self):
        mode = self.chance.choice((
            0,
            KEEP_SIZE,
            PUNCH_HOLE | KEEP_SIZE,
            PUNCH_HOLE | KEEP_SIZE,
            PUNCH_HOLE,
            ZERO_RANGE,
            ZERO_RANGE | KEEP_SIZE,
            COLLAPSE_RANGE,
        ))  # fmt: skip
        length = max(self.chance.choice(SIZES), 1)
        return self._of_handle("fallocate", mode, self.chance.choice(OFFSETS), length, writes=True)

    def make_seek(self):
        number = self._number()
        if number is None or self.pair.handles[number].content is None:
            return None  # what a folder answers each file system has its own mind about
        whence = self.chance.choice((os.SEEK_DATA, os.SEEK_HOLE))
        return ("seek", number, self.chance.choice(OFFSETS), whence)

    def make_copy(self):
        source, target = self._number(writes=True), self._number(writes=True)
        if source is None or target is None:
            return None
        size = self.chance.choice(SIZES)
        offsets = self.chance.choice(OFFSETS), self.chance.choice(OFFSETS)
        return ("copy", source, target, *offsets, size)

    def make_map_read(self):
        return self._of_handle("map_read", self.chance.random() < 0.5)

    def make_map_write(self):
        offset, size = self.chance.choice(OFFSETS), max(1, self.chance.choice(SIZES[:9]))
        return self._of_handle("map_write", offset, self._seed(), size, writes=True)


WEIGHTS = {
    "mkdir": 4,
    "rmdir": 2,
    "unlink": 5,
    "symlink": 2,
    "readlink": 1,
    "rename": 10,
    "list": 4,
    "stat": 8,
    "access": 2,
    "chmod": 3,
    "chown": 2,
    "utime": 3,
    "mtime": 2,
    "setxattr": 3,
    "removexattr": 2,
    "xattrs": 3,
    "truncate": 4,
    "read_file": 10,
    "write_file": 10,
    "append_file": 6,
    "open": 16,
    "close": 13,
    "read": 10,
    "write": 12,
    "ftruncate": 4,
    "fsync": 3,
    "fstat": 6,
    "fchmod": 2,
    "same": 2,
    "fallocate": 4,
    "seek": 4,
    "copy": 4,
    "map_read": 3,
    "map_write": 3,
}


def shortest(fails, operations, seconds=60.0):
    """Cut a failing run down: leave operations out as long as it still fails."""
    import time  # noqa: PLC0415  (only a failure comes here)

    deadline = time.monotonic() + seconds
    step = max(1, len(operations) // 2)
    while step and time.monotonic() < deadline:
        start = 0
        while start < len(operations) and time.monotonic() < deadline:
            rest = operations[:start] + operations[start + step :]
            if fails(rest):
                operations = rest
            else:
                start += step
        step //= 2
    return operations
