"""Contenders for the tests: each made once for a module, in a folder of its own."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from benchmarks.measure import Missing
from benchmarks.mounts import temporary_folder


@pytest.fixture(scope="module")
def contender(request):
    with temporary_folder(None) as folder, ExitStack() as stack:
        try:
            yield request.param(folder / "contender", stack)
        except Missing as missing:
            pytest.skip(str(missing))
