"""What every test may use. Each store that a test opened is checked when the test is over."""

from __future__ import annotations

import pytest

from kvstate.errors import Unavailable
from kvstate.store import open_store
from tests.harness import ManualClock


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
