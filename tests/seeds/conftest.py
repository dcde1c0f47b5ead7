"""Systems that people built by hand, on the public interface alone, through both doors."""

from __future__ import annotations

import pytest

import kvstate
from kvstated.server import serving


@pytest.fixture(params=["embedded", "client"])
def store(request, tmp_path, clock, open_checked):
    """A store whose clock is the `clock` fixture."""
    store = open_checked(tmp_path / "store", clock=clock)
    if request.param == "embedded":
        yield store
        return
    with serving(store, tmp_path / "socket"), kvstate.connect(tmp_path / "socket") as client:
        yield client
