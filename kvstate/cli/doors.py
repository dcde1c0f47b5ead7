"""Which store a command works on: one opened here, or a daemon's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kvstate.errors import Unavailable

if TYPE_CHECKING:
    from argparse import Namespace

    from kvstate.remote import RemoteStore
    from kvstate.settings import StoreSettings
    from kvstate.store import Store

__all__ = ["open_door", "store_path"]


def open_door(options: Namespace) -> Store | RemoteStore:
    """Open what the options, or the environment, say; a command that writes may make a store."""
    path = store_path(options)
    if path is not None:
        from kvstate.store import open_store  # noqa: PLC0415  (loaded when it is needed)

        creates = getattr(options, "creates", False)
        return open_store(path, create=creates, settings=_settings(path))
    from kvstate.remote import connect  # noqa: PLC0415  (loaded when it is needed)

    try:
        return connect(options.socket)
    except Unavailable as error:
        if options.socket or os.environ.get("KVSTATE_SOCKET"):
            raise
        raise Unavailable(
            "daemon", f"{error}; give --store DIR, or --socket PATH, or start kvstated"
        ) from None


def store_path(options: Namespace) -> Path | None:
    """Give the folder of the store, when the command works on one in-process."""
    if options.store is not None:
        path: Path = options.store
        return path
    if options.socket is None and os.environ.get("KVSTATE_STORE"):
        return Path(os.environ["KVSTATE_STORE"])
    return None


def _settings(path: Path) -> StoreSettings | None:
    """Read the settings, if the environment overrides some; else the store reads its own file."""
    named = [key for key in os.environ if key.startswith("KVSTATE_") or "_RETENTION_DAYS" in key]
    if not set(named) - {"KVSTATE_STORE", "KVSTATE_SOCKET"}:
        return None
    from kvstate.config import load  # noqa: PLC0415  (costs 30 ms)

    return load(path, None, os.environ).store_settings()
