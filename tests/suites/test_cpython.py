"""CPython's own tests of files, with their temporary folder on a mount.

They need the `test` package of the interpreter (pyenv and python.org have it; Debian has it as
libpython3.x-testsuite) and are left out by name without it. What the mount answers differently is
listed here, each with its reason; whatever else fails is a fault.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest

from tests.suites.demands import LONG

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(
        importlib.util.find_spec("test.libregrtest") is None,
        reason="needs the interpreter's own `test` package (libpython3.x-testsuite)",
    ),
]

GROUPS = {
    "os": ["test_posix", "test_os"],
    "paths": ["test_posixpath", "test_genericpath", "test_glob", "test_stat"],
    "trees": ["test_shutil", "test_filecmp", "test_file", "test_fileio", "test_fileinput"],
    "databases": ["test_dbm", "test_dbm_dumb", "test_dbm_gnu", "test_mmap", "test_fcntl"],
    "archives": ["test_tarfile", "test_zipfile", "test_mailbox"],
}
ONLY = {"archives": ["WriteTest", "AppendTest", "ExtractTests", "TestMaildir", "TestMbox"]}
"""The classes that a group is cut down to, but in the long form."""
LONG_GROUPS = {
    "objects": ["test_pathlib", "test_tempfile", "test_largefile", "test_linecache"],
    "modules": ["test_zipapp", "test_zipimport", "test_import", "test_compileall"],
    "compressed": ["test_gzip", "test_bz2", "test_lzma"],
    "tables": ["test_shelve", "test_sqlite3"],
    "io": ["test_io", "test_bufio"],
}

HARD_LINKS = "there are no hard links"
PIPES = "there are no pipes, sockets and devices"
NAMES = 'a name is UTF-8 and has no : * ? " < > | or backslash'
MAPS = "no shared writable mappings on this adapter"
TIMES = "ctime is when a change was stored, which is after the write; a folder has one time"
STORED = "content is stored on close: another descriptor reads what was stored"

DIFFERENT = {
    "both": {
        "test.test_posix.*.test_link*": HARD_LINKS,
        "test.test_os.LinkTests.*": HARD_LINKS,
        "test.test_pathlib.*.test_hardlink_to*": HARD_LINKS,
        "test.test_pathlib.*.test_link_to*": HARD_LINKS,
        "test.test_tarfile.*.test_*link*": HARD_LINKS,
        "test.test_tarfile.*.test_fifo*": PIPES,
        "test.test_tarfile.*.test_pipe*": PIPES,
        "test.test_posix.*.test_mkfifo*": PIPES,
        "test.test_posix.*.test_mknod*": PIPES,
        "test.test_posixpath.*.test_islink*": PIPES,
        "test.test_genericpath.*.test_exists_fd*": PIPES,
        "test.test_stat.*.test_fifo*": PIPES,
        "test.test_stat.*.test_devices*": PIPES,
        "test.test_glob.*.test_*fifo*": PIPES,
        "test.test_shutil.*fifo*": PIPES,
        "test.test_shutil.*pipe*": PIPES,
        "test.test_pathlib.*.test_is_fifo_true": PIPES,
        "test.test_pathlib.*.test_is_socket_true": PIPES,
        "test.test_mailbox.TestMaildir.*": NAMES,
        "test.test_zipfile.*.test_extract_hackers_arcnames_posix_only": NAMES,
        "test.test_zipimport.*.testUnencodable": NAMES,
        "test.test_sqlite3.test_dbapi.OpenTests.test_open_*undecod*": NAMES,
        "test.test_os.Pep383Tests.*": NAMES,
        "test.test_posixpath.*.test_nonascii_abspath": NAMES,
        "test.*.test_filetime": TIMES,
        "test.test_os.UtimeTests.test_utime_directory": TIMES,
    },
    "kernel": {},
    "fusepy": {
        "test.test_mmap.*": MAPS,
        "test.test_os.FileTests.test_copy_file_range*": STORED,
        "test.test_os.FileTests.test_splice*": STORED,
        "test.test_mailbox.*": STORED,
    },
}


def run_modules(folder, modules, report, only=()):
    """Run them with their files in a folder; give the tests that failed, and what was said."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "test", "--tempdir", str(folder), "--junit-xml", str(report)),
            *(word for name in only for word in ("-m", name)),
            *("--timeout", "170", *modules),
        ],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=900,
    )
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    cases = ET.parse(report).getroot().iter("testcase")
    failed = {}
    ran = 0
    for case in cases:
        ran += 1
        found = [*case.iter("failure"), *case.iter("error")]
        if found:
            failed[case.get("name")] = (found[0].text or found[0].get("message") or "")[-900:]
    assert ran > len(modules), done.stdout[-3000:]
    return failed


def is_expected(name, adapter):
    patterns = [*DIFFERENT["both"], *DIFFERENT[adapter]]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", [*GROUPS, *(LONG_GROUPS if LONG else ())])
def test_the_tests_of_python_itself_pass(mounted, adapter, group, tmp_path):
    modules = {**GROUPS, **LONG_GROUPS}[group]
    only = () if LONG else ONLY.get(group, ())
    workflow = mounted.path / "all/cpython" / group
    workflow.mkdir(parents=True)

    failed = run_modules(workflow, modules, tmp_path / "report.xml", only)

    surprising = {name: why for name, why in failed.items() if not is_expected(name, adapter)}
    if surprising:  # is it the mount, or what this machine makes of them anywhere?
        (tmp_path / "plain").mkdir()
        elsewhere = run_modules(tmp_path / "plain", modules, tmp_path / "plain.xml", only)
        surprising = {name: why for name, why in surprising.items() if name not in elsewhere}
    said = "\n\n".join(f"{name}\n{why}" for name, why in surprising.items())
    assert surprising == {}, said
    assert "Traceback" not in mounted.log()
