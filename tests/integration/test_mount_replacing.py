"""A name that is replaced all the time is never absent, never torn, and never older than before.

``KVSTATE_OPENS=1000000`` opens so often, on each adapter and in each way of replacing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest

import kvstate
from tests.integration.mounts import MountProcess

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(14_400)]

OPENS = int(os.environ.get("KVSTATE_OPENS", "3000"))
WITHOUT_A_NAME_MAX = 0.001
"""How many opens libfuse's path interface may fail: docs/mount.md."""
READER = textwrap.dedent("""
    import os, sys
    path, opens, unit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    failed, torn, back, newest = {}, 0, 0, 0
    for _ in range(opens):
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                parts = []
                while part := os.read(descriptor, 1 << 20):
                    parts.append(part)
            finally:
                os.close(descriptor)
        except OSError as error:
            failed[error.errno] = failed.get(error.errno, 0) + 1
            continue
        data = b"".join(parts)
        if data != data[:8] * unit:
            torn += 1
            continue
        back += int(data[:8]) < newest
        newest = int(data[:8])
    print(sum(failed.values()), torn, back, newest, failed)
""")


@pytest.fixture
def mount(tmp_path, adapter):
    process = MountProcess(tmp_path, adapter)
    process.start()
    yield process
    process.end()


def version(number, unit):
    return b"%08d" % number * unit


def by_rename(folder, _store, number, unit):
    (folder / "next").write_bytes(version(number, unit))
    (folder / "next").rename(folder / "f")


def in_place(folder, _store, number, unit):
    (folder / "f").write_bytes(version(number, unit))


def by_put(_folder, store, number, unit):
    store.artifacts.put("acme/weekly/f", version(number, unit))


@pytest.mark.parametrize("unit", [100, 50_000], ids=["800 bytes", "400 kB"])
@pytest.mark.parametrize("replace", [by_rename, in_place, by_put])
def test_a_name_that_is_replaced_is_always_whole(mount, adapter, replace, unit):
    folder = mount.path / "all/acme/weekly"
    folder.mkdir(parents=True)
    opens = OPENS if unit == 100 else max(1, OPENS // 5)
    with kvstate.open(mount.store_path) as store:
        in_place(folder, store, 0, unit)
        command = [sys.executable, "-c", READER, folder / "f", str(opens), str(unit)]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        number = 0
        while any(reader.poll() is None for reader in readers):
            number += 1
            replace(folder, store, number, unit)
            time.sleep(0.002)
    said = [reader.communicate()[0].decode().split(maxsplit=4) for reader in readers]

    assert [reader.returncode for reader in readers] == [0, 0]
    assert [(torn, back) for _, torn, back, *_ in said] == [("0", "0")] * 2, said
    failed = sum(int(first) for first, *_ in said)
    allowed = 0 if adapter == "kernel" else WITHOUT_A_NAME_MAX * 2 * opens
    assert failed <= allowed, said
    assert all(int(newest) > 0 for _, _, _, newest, _ in said)
