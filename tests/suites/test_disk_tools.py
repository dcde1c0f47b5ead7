"""fio with verification and stress-ng's file system stressors, on a mount."""

from __future__ import annotations

import json

import pytest

from tests.integration.mounts import run, shell
from tests.suites.demands import LONG, needs

pytestmark = pytest.mark.fuse

SIZE = "256m" if LONG else "8m"
SECONDS = 30 if LONG else 2
OPERATIONS = 2000 if LONG else 60

FIO = {
    "random writes, verified": ["--rw=randwrite", "--bs=4k-64k", "--verify=crc32c"],
    "random reads and writes, verified": ["--rw=randrw", "--bs=4k", "--verify=xxhash"],
    "sequential writes with fsync": ["--rw=write", "--bs=128k", "--verify=md5", "--fsync=16"],
    "two jobs in two files": ["--rw=randrw", "--bs=8k", "--verify=crc32c", "--numjobs=2"],
    "trims": ["--rw=randwrite", "--bs=16k", "--verify=crc32c", "--fallocate=none"],
    "mapped": ["--rw=randwrite", "--bs=4k", "--verify=crc32c", "--ioengine=mmap"],
}

STRESSORS = {
    "names": ["dentry", "dir", "dirdeep", "dirmany", "filename", "getdent", "rename", "symlink"],
    "attributes": ["access", "chdir", "chmod", "chown", "fstat", "touch", "utime", "xattr"],
    "content": ["fallocate", "fpunch", "fsize", "hdd", "iomix", "open", "readahead", "seek"],
    "sharing": ["fcntl", "flock", "locka", "lockf", "lockofd", "sendfile", "sync-file", "dup"],
}
"""By what they are about; each is left out where this stress-ng does not know it."""


@needs("fio")
@pytest.mark.parametrize("job", FIO)
def test_fio_reads_back_what_it_wrote(workflow, adapter, job):
    if job == "mapped" and adapter == "fusepy":
        pytest.skip("no shared writable mappings on this adapter (docs/posix.md)")
    words = ["--name=job", f"--directory={workflow}", f"--size={SIZE}", "--randseed=1"]
    engine = [] if job == "mapped" else ["--ioengine=psync"]
    checks = ["--do_verify=1", "--verify_fatal=1", "--output-format=json"]

    said = run("fio", *words, *engine, *checks, *FIO[job], cwd=workflow)

    report = json.loads(said[said.index(b"{") :])
    assert [each["error"] for each in report["jobs"]] == [0] * len(report["jobs"])
    assert sum(each["read"]["io_bytes"] for each in report["jobs"]) > 1 << 20


def known(names):
    """Give those that this stress-ng has."""
    listed = set(run("stress-ng", "--stressors").decode().split())
    return [name for name in names if name in listed]


LIMITS = {
    "fallocate": ["--fallocate-bytes", "1m"],
    "hdd": ["--hdd-bytes", "2m"],
    "iomix": ["--iomix-bytes", "2m"],
    "readahead": ["--readahead-bytes", "2m"],
    "seek": ["--seek-size", "1m"],
}


@needs("stress-ng")
@pytest.mark.parametrize("group", STRESSORS)
def test_stress_ng_finds_nothing_wrong(workflow, mounted, group):
    listed = set(run("stress-ng", "--stressors").decode().split())
    stressors = [name for name in STRESSORS[group] if name in listed]
    assert len(stressors) > len(STRESSORS[group]) // 2
    words = []
    for name in stressors:
        words += [f"--{name}", "1", f"--{name}-ops", str(OPERATIONS), *LIMITS.get(name, [])]

    said = shell(
        f"stress-ng --temp-path . --timeout {SECONDS}s --verify --log-brief {' '.join(words)} 2>&1",
        cwd=workflow,
    )

    assert b"fail:" not in said
    assert "Traceback" not in mounted.log()
