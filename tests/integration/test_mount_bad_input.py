"""What a mount is asked that makes no sense, or too much of it: one clear errno, nothing lost."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import wait_for
from tests.integration.mounts import run, shell

pytestmark = pytest.mark.fuse

OPENS = 10_000
RESERVED = {*b'/:*?"<>|\\', *range(1, 32), 127}
_NUMBERS = itertools.count(1)

READING = """
import os, sys
while True:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    while os.read(fd, 65536):
        print(end=".", flush=True)
    os.close(fd)
"""
APPENDING = """
import os, sys
path, name, lines = sys.argv[1:]
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(int(lines)):
    os.write(fd, f"{name} {number}\\n".encode())
os.close(fd)
"""


@pytest.fixture
def workflow(mounted):
    folder = mounted.path / "all/bad" / f"workflow-{next(_NUMBERS)}"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def no_traceback(mounted):
    """Whatever is asked, nothing breaks where nobody sees it."""
    yield
    assert "Traceback" not in mounted.log()
    assert "hot" in os.listdir(mounted.path)  # noqa: PTH208


def errno_of(function, *arguments):
    """Give the name of the errno that a call answers; None when it succeeds."""
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


def create(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))


class TestNames:
    def test_every_byte_is_kept_or_refused_with_one_errno(self, workflow):
        folder = os.fsencode(workflow)
        expected = dict.fromkeys(range(1, 256))
        expected.update(dict.fromkeys(RESERVED, "EINVAL"))
        expected.update(dict.fromkeys(range(128, 256), "EILSEQ"))
        del expected[ord("/")]

        found = {}
        for byte in expected:
            found[byte] = errno_of(create, folder + b"/x" + bytes([byte]) + b"y")

        assert found == expected
        kept = {b"x" + bytes([byte]) + b"y" for byte, number in expected.items() if number is None}
        assert set(os.listdir(folder)) == kept  # noqa: PTH208

    @pytest.mark.parametrize(
        "call",
        [os.mkdir, os.unlink, os.rmdir, create, os.listdir],
        ids=["mkdir", "unlink", "rmdir", "create", "listdir"],
    )
    def test_what_is_not_utf8_has_one_errno(self, workflow, call):
        for name in (b"\xff", b"a\x80b", b"\xed\xa0\x80", b"\xc3", b"\xf5\x80\x80\x80"):
            number = errno_of(call, os.fsencode(workflow) + b"/" + name)
            assert number in {"EILSEQ", "ENOENT"}, (call, name)  # what is asked first is not there

    def test_a_file_is_not_renamed_to_what_is_not_utf8(self, workflow):
        (workflow / "f").write_bytes(b"text")

        number = errno_of(os.rename, os.fsencode(workflow / "f"), os.fsencode(workflow) + b"/\xff")

        assert number == "EILSEQ"
        assert (workflow / "f").read_bytes() == b"text"

    @pytest.mark.parametrize("letter", ["x", "é", "€", "𝄞"])
    def test_255_bytes_are_kept_and_256_are_too_long(self, workflow, letter):
        width = len(letter.encode())
        longest = letter * (255 // width)
        create(workflow / longest)

        assert errno_of(create, workflow / (longest + "x" * (256 - 255 // width * width))) == (
            "ENAMETOOLONG"
        )
        assert [path.name for path in workflow.iterdir()] == [longest]

    def test_a_path_near_path_max_can_be_reached_and_a_longer_one_not(self, workflow):
        here = os.open(workflow, os.O_RDONLY | os.O_DIRECTORY)
        names = ["d" * 250] * 14
        folders = [here]
        for name in names:
            os.mkdir(name, dir_fd=folders[-1])
            folders.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folders[-1]))
        try:
            fd = os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=folders[-1])
            os.write(fd, b"deep")
            os.close(fd)
            path = os.path.join(workflow, *names, "f")  # noqa: PTH118

            assert 3500 < len(path) < 4096
            assert Path(path).read_bytes() == b"deep"
            assert errno_of(os.stat, path + "/" + "x" * 250 + "/" + "x" * 250) in {
                "ENAMETOOLONG",
                "ENOTDIR",
            }
            assert errno_of(os.stat, "/".join([path, *["x" * 250] * 3])) == "ENAMETOOLONG"
        finally:
            for folder in folders:
                os.close(folder)

    def test_keys_files_have_names_that_some_key_has(self, mounted):
        folder = mounted.path / "state/names"
        folder.mkdir()

        for name in ("%zz", "%41", "%2f", "a%", "%c3"):
            assert errno_of(create, folder / name) == "EINVAL", name

        assert list(folder.iterdir()) == []


class TestFolders:
    def test_a_folder_is_not_moved_below_itself(self, workflow):
        (workflow / "a/b/c").mkdir(parents=True)
        (workflow / "a/b/c/f").write_bytes(b"text")

        for target in ("a/x", "a/b/x", "a/b/c/x", "a/b/c"):
            assert errno_of(os.rename, workflow / "a", workflow / target) in {
                "EINVAL",
                "ENOTEMPTY",
            }

        assert (workflow / "a/b/c/f").read_bytes() == b"text"
        run("mv", workflow / "a", workflow / "a/b", code=1)

    def test_the_parts_of_the_tree_stay_where_they_are(self, mounted):
        for part in ("hot", "all", "state", ".kvstate"):
            assert errno_of(os.rename, mounted.path / part, mounted.path / "other") in {
                "EPERM",
                "EXDEV",
                "EACCES",
            }, part
            assert errno_of(os.rmdir, mounted.path / part) in {"EPERM", "ENOTEMPTY", "EACCES"}


class TestManyOpens:
    @pytest.fixture
    def descriptors(self):
        """Room for so many descriptors in this process."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPENS + 1000
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"only {hard} descriptors are allowed here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        yield
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    @pytest.mark.parametrize("size", [10, 100_000], ids=["small", "large"])
    def test_thousands_of_opens_without_a_close_all_read(self, workflow, descriptors, size):
        data = os.urandom(size)
        (workflow / "f").write_bytes(data)
        with contextlib.ExitStack() as stack:
            fds = []
            for _ in range(OPENS):
                fds.append(os.open(workflow / "f", os.O_RDONLY))
                stack.callback(os.close, fds[-1])

            assert all(os.pread(fd, 10, size - 10) == data[-10:] for fd in fds[:: OPENS // 100])
            (workflow / "g").write_bytes(b"still works")
            assert (workflow / "g").read_bytes() == b"still works"
        (workflow / "f").unlink()
        assert [path.name for path in workflow.iterdir()] == ["g"]

    def test_hundreds_of_files_are_written_at_once(self, workflow):
        names = [str(number) for number in range(300)]
        with contextlib.ExitStack() as stack:
            for name in names:
                file = stack.enter_context((workflow / name).open("wb"))
                file.write(name.encode() * 10)
                file.flush()

        assert {path.name: path.read_bytes() for path in workflow.iterdir()} == {
            name: name.encode() * 10 for name in names
        }


class TestProcesses:
    def test_readers_that_are_killed_leave_nothing(self, workflow, mounted):
        data = os.urandom(4_000_000)
        (workflow / "f").write_bytes(data)
        for _ in range(5):
            readers = [
                subprocess.Popen(
                    [sys.executable, "-c", READING, workflow / "f"], stdout=subprocess.PIPE
                )
                for _ in range(3)
            ]
            for reader in readers:
                assert reader.stdout.read(3) == b"..."
                reader.send_signal(signal.SIGKILL)
            for reader in readers:
                reader.wait(30)
                reader.stdout.close()

        assert (workflow / "f").read_bytes() == data
        (workflow / "f").unlink()
        with mounted.opened_store() as store:
            assert store.check(verify=True).clean

    def test_a_writer_that_is_killed_stores_what_its_close_would(self, workflow):
        """A process that ends closes what it has open, however it ends."""
        script = (
            "import os, signal, sys\n"
            "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
            "os.write(fd, b'some')\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        run(sys.executable, "-c", script, workflow / "f", code=-9)

        wait_for(lambda: (workflow / "f").read_bytes() == b"some", what="the file to be stored")

    def test_ten_processes_append_to_one_file(self, workflow):
        lines = 50
        writers = [
            subprocess.Popen([sys.executable, "-c", APPENDING, workflow / "log", name, str(lines)])
            for name in "abcdefghij"
        ]

        assert [writer.wait(120) for writer in writers] == [0] * 10

        found = (workflow / "log").read_text().splitlines()
        assert sorted(found) == sorted(
            f"{name} {number}" for name in "abcdefghij" for number in range(lines)
        )
        for name in "abcdefghij":  # and each process' lines are in their order
            own = [int(line.split()[1]) for line in found if line[0] == name]
            assert own == list(range(lines))


class TestComputed:
    def test_computed_files_are_not_written_changed_or_removed(self, mounted):
        file = mounted.path / ".kvstate/stats.json"
        before = json.loads(file.read_text())

        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
            assert errno_of(os.open, file, flags) in {"EACCES", "EPERM", "EROFS"}
        assert errno_of(os.truncate, file, 0) in {"EACCES", "EPERM", "EROFS"}
        assert errno_of(os.unlink, file) in {"EACCES", "EPERM", "EROFS"}
        assert errno_of(os.chmod, file, 0o666) in {"EACCES", "EPERM", "EROFS", "ENOTSUP"}
        assert errno_of(create, mounted.path / ".kvstate/new") in {"EACCES", "EPERM", "EROFS"}
        assert errno_of(os.setxattr, file, "user.x", b"x") in {"EACCES", "EPERM", "ENOTSUP"}
        assert json.loads(file.read_text()).keys() == before.keys()

    def test_a_shell_that_tries_says_why(self, mounted):
        said = shell("{ ! echo x > .kvstate/stats.json; } 2>&1", cwd=mounted.path)

        assert b"Permission denied" in said or b"not permitted" in said

    @pytest.mark.parametrize("name", ["digest", "revision", "size", "created", "nonsense"])
    def test_computed_attributes_are_not_set(self, workflow, name):
        (workflow / "f").write_bytes(b"text")

        assert errno_of(os.setxattr, workflow / "f", f"user.kvstate.{name}", b"x") == "ENOTSUP"
        assert errno_of(os.removexattr, workflow / "f", f"user.kvstate.{name}") in {
            "ENOTSUP",
            "ENODATA",
        }

    def test_attributes_of_other_kinds_and_sizes(self, workflow):
        (workflow / "f").write_bytes(b"text")
        refused = {"ENOTSUP", "EPERM"}

        assert errno_of(os.setxattr, workflow / "f", "trusted.x", b"x") in refused
        assert errno_of(os.setxattr, workflow / "f", "nonsense", b"x") in refused
        assert errno_of(os.setxattr, workflow / "f", "user.big", b"x" * 65_537) in {
            "E2BIG",
            "ENOSPC",
        }
        assert errno_of(os.setxattr, workflow / "f", "user." + "x" * 251, b"x") == "ERANGE"
        assert errno_of(os.getxattr, workflow / "f", "user.none") == "ENODATA"


class TestValues:
    @pytest.mark.parametrize(
        "text", [b"{", b"[1, 2", b"nope", b'{"a": 1} trailing', b"\xff\xfe", b'{"a": NaN'], ids=repr
    )
    def test_what_is_no_json_does_not_become_a_structured_value(self, mounted, text):
        with mounted.opened_store() as store:
            store.namespace("structured").set("key", {"kept": True})
        file = mounted.path / "state/structured/key"

        def write():
            fd = os.open(file, os.O_WRONLY | os.O_TRUNC)
            try:
                os.write(fd, text)
            finally:
                os.close(fd)

        assert errno_of(write) == "EINVAL"
        with mounted.opened_store() as store:
            assert store.namespace("structured")["key"] == {"kept": True}
        wait_for(lambda: json.loads(file.read_text()) == {"kept": True}, what="the old value")

    def test_the_impossible_is_refused_by_number(self, workflow):
        (workflow / "f").write_bytes(b"text")
        fd = os.open(workflow / "f", os.O_RDWR)
        try:
            assert errno_of(os.ftruncate, fd, -1) == "EINVAL"
            assert errno_of(os.lseek, fd, -1, os.SEEK_SET) == "EINVAL"
            assert errno_of(os.lseek, fd, 1, 77) == "EINVAL"
            assert errno_of(os.pread, fd, 1, -1) == "EINVAL"
            assert errno_of(os.readlink, workflow / "f") == "EINVAL"
            assert errno_of(os.open, workflow / "f", os.O_RDONLY | os.O_DIRECTORY) == "ENOTDIR"
            assert errno_of(os.open, workflow, os.O_WRONLY) == "EISDIR"
            assert errno_of(os.listdir, workflow / "f") == "ENOTDIR"
            with pytest.raises(ValueError, match="greater than"):
                mmap.mmap(fd, 1 << 20, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
        finally:
            os.close(fd)
        assert (workflow / "f").read_bytes() == b"text"
