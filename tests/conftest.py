"""What every test may use. Each store that a test opened is checked when the test is over."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from kvstate.errors import Unavailable
from kvstate.store import open_store
from tests.harness import ManualClock, fuse_or_skip
from tests.integration.mounts import ADAPTERS, mounted_in

MEMORY = Path("/dev/shm")
ROOM_BYTES = 1 << 30

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background ignores Ctrl-C, and so would all they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def open_checked():
    """Open stores that are checked, to the last byte, and closed when the test is over."""
    opened = []

    def opener(path, **options):
        store = open_store(path, **options)
        opened.append(store)
        return store

    yield opener
    problems = []
    for store in opened:
        try:
            problems += store.check(verify=True).problems
        except Unavailable:
            continue  # the test closed it
        store.close()
    assert problems == []


@pytest.fixture
def store(tmp_path, clock, open_checked):
    """A store on disk, in this process, whose clock the test sets."""
    return open_checked(tmp_path / "store", clock=clock)


@pytest.fixture(scope="module", params=ADAPTERS)
def adapter(request):
    """Each way of speaking to the kernel: what a mount is started with."""
    fuse_or_skip()
    return request.param


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """A folder in memory, where there is room, for what is not about disks."""
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    if not roomy or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        yield tmp_path_factory.mktemp("memory")
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="kvstate-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def mounted(adapter, tmp_path_factory):
    """A store that is mounted for the tests of a module; checked to the last byte after them."""
    yield from mounted_in(tmp_path_factory.mktemp("mounted"), adapter)
