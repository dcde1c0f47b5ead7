"""Every way into a store: each fact in this folder is checked on all of them."""

from __future__ import annotations

import pytest

from kvstate import store as stores
from kvstate.remote import connect
from kvstated.revisions import Revisions
from kvstated.server import Server
from tests.conformance.aio_door import AioDoor
from tests.harness import RerunEngine

DOORS = ["embedded", "memory", "rerun", "client"]
ABOUT_KEYS = {"test_state", "test_key_semantics", "test_key_corners", "test_redis_facts"}


def pytest_generate_tests(metafunc):
    """What is about keys holds for the asynchronous client as well."""
    if "store" in metafunc.fixturenames:
        keys = metafunc.module.__name__.rpartition(".")[2] in ABOUT_KEYS
        metafunc.parametrize("store", [*DOORS, "aio"] if keys else DOORS, indirect=True)


@pytest.fixture
def store(request, tmp_path, clock, open_checked, monkeypatch):
    """A store through one of the doors; its clock is the `clock` fixture."""
    path = tmp_path / "store"
    if request.param == "memory":
        yield open_checked(path, clock=clock, engine="memory")
    elif request.param == "rerun":
        real = stores.LmdbEngine
        monkeypatch.setattr(stores, "LmdbEngine", lambda *a, **k: RerunEngine(real(*a, **k)))
        yield open_checked(path, clock=clock)
    elif request.param == "aio":
        served = _served(open_checked(path, clock=clock), tmp_path / "socket")
        next(served)
        with AioDoor(tmp_path / "socket") as door:
            yield door
        served.close()
    elif request.param == "client":
        yield from _served(open_checked(path, clock=clock), tmp_path / "socket")
    else:
        yield open_checked(path, clock=clock)


def _served(store, socket):
    revisions = Revisions(store)
    revisions.start()
    server = Server(
        store, revisions, path=socket, mode=0o600, frame_bytes_max=1 << 20, connections_max=64
    )
    server.start()
    try:
        with connect(socket) as client:
            yield client
    finally:
        server.stop(5)
        revisions.stop()
