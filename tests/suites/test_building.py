"""What people do with a folder of files: build, install, search, pack, copy, measure, watch."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from contextlib import contextmanager

import pytest

from tests.harness import wait_for
from tests.integration.mounts import run, shell
from tests.suites.demands import needs

pytestmark = pytest.mark.fuse

LC_C = {"LC_ALL": "C"}
PARTS = ("add", "divide", "multiply", "negate", "subtract")
MAKEFILE = """\
OBJECTS = main.o add.o divide.o multiply.o negate.o subtract.o
CFLAGS = -O1 -g -Wall -Werror

calculator: libparts.a main.o
\t$(CC) -o $@ main.o -L. -lparts
libparts.a: add.o divide.o multiply.o negate.o subtract.o
\trm -f $@ && ar rcs $@ $^
%.o: %.c parts.h
\t$(CC) $(CFLAGS) -c -o $@ $<
clean:
\trm -f $(OBJECTS) libparts.a calculator
"""


def c_project(folder):
    """Write a program of six files with a header, a library and a Makefile."""
    (folder / "Makefile").write_text(MAKEFILE)
    declared = "".join(f"int {name}(int, int);\n" for name in PARTS)
    (folder / "parts.h").write_text(f"#pragma once\n{declared}")
    for name, sign in zip(PARTS, "+/*--", strict=True):
        body = f'#include "parts.h"\nint {name}(int a, int b) {{ return a {sign} b; }}\n'
        (folder / f"{name}.c").write_text(body)
    called = "".join(f'    printf("%d\\n", {name}(12, 4));\n' for name in PARTS)
    (folder / "main.c").write_text(
        f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{\n{called}    return 0;\n}}\n'
    )


@needs("make", "cc", "ar")
class TestMake:
    def test_a_c_project_is_built_and_runs(self, workflow):
        c_project(workflow)

        run("make", "-j3", cwd=workflow)

        assert run(workflow / "calculator") == b"16\n3\n48\n8\n8\n"

    def test_times_say_what_has_to_be_built_again(self, workflow):
        c_project(workflow)
        run("make", cwd=workflow)
        assert b"up to date" in run("make", cwd=workflow, environ=LC_C)

        text = (workflow / "add.c").read_text().replace("a + b", "a + b + 1")
        (workflow / "add.c").write_text(text)
        built = run("make", cwd=workflow, environ=LC_C)

        assert b"add.c" in built
        assert b"divide.c" not in built
        assert run(workflow / "calculator").startswith(b"17\n")
        run("touch", "parts.h", cwd=workflow)
        assert run("make", cwd=workflow).count(b".c\n") == len(PARTS) + 1
        run("make", "clean", cwd=workflow)
        assert run("make", "-q", cwd=workflow, code=1) == b""


def wheel(folder, version):
    """Make a wheel by hand: no network, no build system."""
    files = {
        "weighing/__init__.py": f"__version__ = '{version}'\n",
        "weighing/__main__.py": "import weighing\nprint(weighing.__version__)\n",
        **{f"weighing/data/{number}.txt": f"{number}\n" * number for number in range(40)},
        f"weighing-{version}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: weighing\nVersion: {version}\n"
        ),
        f"weighing-{version}.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        f"weighing-{version}.dist-info/entry_points.txt": (
            "[console_scripts]\nweigh = weighing.__main__:print\n"
        ),
    }
    record = f"weighing-{version}.dist-info/RECORD"
    lines = [f"{name},{_recorded(text)}" for name, text in files.items()]
    path = folder / f"weighing-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    return path


def _recorded(text):
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
    return f"sha256={digest.decode()},{len(text)}"


def test_a_virtual_environment_takes_packages_and_gives_them_up(workflow):
    environment = workflow / "env"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    offline = ["--no-index", "--find-links", workflow, "--quiet"]

    wheel(workflow, "1.0")
    run(*pip, "install", *offline, "weighing")
    assert run(python, "-m", "weighing") == b"1.0\n"
    assert os.access(environment / "bin/weigh", os.X_OK)
    wheel(workflow, "1.1")
    run(*pip, "install", *offline, "--upgrade", "weighing")
    assert run(python, "-m", "weighing") == b"1.1\n"
    run(*pip, "uninstall", "--yes", "--quiet", "weighing")

    assert list(environment.rglob("weighing*")) == []
    assert not (environment / "bin/weigh").exists()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A tree on the disk that has what trees have."""
    folder = tmp_path_factory.mktemp("originals") / "tree"
    for number in range(60):
        path = folder / f"d{number % 5}/e{number % 3}" / f"f{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"needle {number}\n" * (number % 7) + "hay\n" * number)
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
    (folder / "d0/link").symlink_to("e0/f0.txt")
    (folder / "large").write_bytes(os.urandom(3_000_000))
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "d4/empty").mkdir()
    return folder


@pytest.fixture
def copied(originals, workflow):
    run("cp", "-a", originals, workflow)
    return workflow / originals.name


class TestSearching:
    @needs("rg")
    def test_ripgrep_finds_what_it_finds_elsewhere(self, originals, copied):
        words = ("rg", "--no-ignore", "--sort", "path", "--count", "needle")

        assert run(*words, cwd=copied) == run(*words, cwd=originals)

    def test_find_newer_compares_times(self, originals, copied):
        words = ("find", ".", "-type", "f", "-newer", "d0/e0/f30.txt")

        assert sorted(run(*words, cwd=copied).split()) == sorted(run(*words, cwd=originals).split())
        run("touch", "d1/e1/f1.txt", cwd=copied)
        assert b"./d1/e1/f1.txt" in run(*words, cwd=copied).split()

    def test_find_knows_kinds_modes_and_empty_folders(self, originals, copied):
        for words in (("-perm", "-u+x", "-type", "f"), ("-type", "l"), ("-empty",), ("-xdev",)):
            command = ("find", ".", *words)
            assert sorted(run(*command, cwd=copied).split()) == sorted(
                run(*command, cwd=originals).split()
            )


class TestPacking:
    @needs("zip", "unzip")
    def test_zip_and_unzip_give_the_same(self, originals, copied, workflow):
        run("zip", "-q", "-r", "-y", workflow / "tree.zip", ".", cwd=copied)

        run("unzip", "-q", workflow / "tree.zip", "-d", workflow / "out")

        assert run("diff", "-r", "--no-dereference", originals, workflow / "out") == b""
        run("zip", "-q", "-T", workflow / "tree.zip")

    def test_tar_keeps_modes_times_and_links(self, originals, copied, tmp_path):
        shell(f"tar -C {copied} --format=posix -cf - . | tar -C {tmp_path} -xpf -")

        listing = (
            "find . -printf '%y %m %s %P %l\\n' | sed 's/^d \\([0-9]*\\) [0-9]*/d \\1/' | sort"
        )
        assert shell(listing, cwd=tmp_path) == shell(listing, cwd=originals)
        times = "find . -type f -printf '%T@ %P\\n' | sort"
        assert shell(times, cwd=tmp_path) == shell(times, cwd=originals)

    def test_rsync_sends_only_what_changed(self, originals, copied):
        (copied / "d1/e1/f1.txt").write_text("changed")
        assert (copied / "d1/e1/f1.txt").read_text() == "changed"

        said = run("rsync", "-a", "--itemize-changes", f"{originals}/", f"{copied}/")

        assert [line.split()[1] for line in said.decode().splitlines() if "f.s" in line] == [
            "d1/e1/f1.txt"
        ]
        assert run("diff", "-r", "--no-dereference", originals, copied) == b""


class TestCopying:
    def test_cp_reflink_auto_copies_within_the_mount(self, copied, workflow):
        run("cp", "--reflink=auto", copied / "large", workflow / "copy")
        run("cp", "--sparse=always", copied / "large", workflow / "sparse")

        assert (workflow / "copy").read_bytes() == (copied / "large").read_bytes()
        assert (workflow / "sparse").read_bytes() == (copied / "large").read_bytes()

    def test_install_and_dd_write_what_they_are_told(self, copied, workflow):
        run("install", "-m", "640", "-D", copied / "run.sh", workflow / "etc/deep/run.sh")
        run("dd", f"if={copied}/large", f"of={workflow}/part", "bs=7k", "skip=3", "count=11")
        patch = ["bs=1", "count=5", "conv=notrunc", "seek=100"]
        run("dd", f"if={copied}/d1/e0/f6.txt", f"of={workflow}/part", *patch)

        assert (workflow / "etc/deep/run.sh").stat().st_mode & 0o777 == 0o640
        expected = bytearray((copied / "large").read_bytes()[3 * 7168 : 14 * 7168])
        expected[100:105] = (copied / "d1/e0/f6.txt").read_bytes()[:5]
        assert (workflow / "part").read_bytes() == bytes(expected)


class TestMeasuring:
    def test_du_counts_what_ls_counts(self, originals, copied):
        words = ("du", "--apparent-size", "--block-size=1", "-a", ".")

        sizes = [
            {
                name: size
                for size, name in (line.split(b"\t") for line in run(*words, cwd=f).splitlines())
                if (f / name.decode()).is_file()
            }
            for f in (copied, originals)
        ]

        assert sizes[0] == sizes[1]
        assert len(sizes[0]) > 60

    def test_du_says_that_large_files_take_room(self, copied):
        blocks = int(run("du", "--block-size=1", copied / "large").split()[0])

        assert 3_000_000 <= blocks < 3_200_000

    def test_df_gives_the_disks_figures(self, mounted):
        shown = run("df", "--output=target,fstype,size,avail", "-B1", mounted.path).decode()

        target, kind, size, available = shown.splitlines()[1].split()
        assert (target, kind) == (str(mounted.path), "fuse.kvstatefs")
        assert 0 < int(available) <= int(size)


_EVENT = struct.Struct("iIII")
_KINDS = {
    0x2: "modify",
    0x4: "attrib",
    0x8: "close_write",
    0x40: "moved_from",
    0x80: "moved_to",
    0x100: "create",
    0x200: "delete",
}


@contextmanager
def watching(folder):
    """Watch a folder; give a function that gives the events so far."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(fd, os.fsencode(folder), sum(_KINDS)) > 0
    events = []

    def seen():
        try:
            data = os.read(fd, 65_536)
        except BlockingIOError:
            return events
        at = 0
        while at < len(data):
            _, mask, _, size = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0").decode()
            events.append((_KINDS.get(mask & 0xFFF), name))
            at += _EVENT.size + size
        return events

    try:
        yield seen
    finally:
        os.close(fd)


def test_inotify_tells_of_local_changes(workflow):
    with watching(workflow) as seen:
        (workflow / "a").write_bytes(b"text")
        (workflow / "a").rename(workflow / "b")
        (workflow / "b").chmod(0o600)
        (workflow / "b").unlink()
        (workflow / "d").mkdir()

        wait_for(lambda: ("create", "d") in seen(), what="the last event")
        expected = [
            ("create", "a"),
            ("modify", "a"),
            ("close_write", "a"),
            ("moved_from", "a"),
            ("moved_to", "b"),
            ("attrib", "b"),
            ("delete", "b"),
            ("create", "d"),
        ]
        found = [event for event in seen() if event in expected]
        assert found == expected


def test_a_program_that_is_running_is_replaced_by_a_new_one(workflow):
    shutil.copy2("/bin/sleep", workflow / "program")
    with subprocess.Popen([workflow / "program", "60"]) as running:
        try:
            shutil.copy2("/bin/echo", workflow / "new")
            (workflow / "new").replace(workflow / "program")

            assert run(workflow / "program", "new") == b"new\n"
            assert running.poll() is None
        finally:
            running.kill()
