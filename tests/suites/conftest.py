"""Other people's tools and test suites, on a mount: a fresh workflow for each test."""

from __future__ import annotations

import itertools

import pytest

from tests.integration.mounts import mounted_in

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def mounted(adapter, memory):
    """As elsewhere, on a disk in memory: suites are about what calls do."""
    yield from mounted_in(memory / adapter, adapter)


@pytest.fixture
def workflow(mounted):
    """A folder that only this test uses."""
    folder = mounted.path / "hot/suites" / f"workflow-{next(_NUMBERS)}"
    folder.mkdir(parents=True)
    return folder
