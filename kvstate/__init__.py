"""kvstate: namespaced keys with a TTL and tiered, checksummed artifacts, also as ordinary files.

    import kvstate

    with kvstate.open("data") as store:              # embedded: no daemon needed
        store.namespace("prs").set("9fceb02", 1287, ttl=3600)
        store.artifacts.put("acme/weekly/report.md", b"# Weekly report")

    with kvstate.connect() as store:                 # the daemon, over its socket: the same methods
        ...

The names below are loaded when they are first used: ``import kvstate`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

from kvstate.version import __version__

TYPE_CHECKING = False  # as a type checker reads it; `typing` costs a tenth of `--help`
if TYPE_CHECKING:
    from kvstate.artifact_files import Artifact
    from kvstate.artifacts import Artifacts
    from kvstate.check import Problem
    from kvstate.errors import (
        Compacted,
        Conflict,
        Damaged,
        Denied,
        Exists,
        Full,
        Incompatible,
        InvalidConfig,
        InvalidName,
        InvalidValue,
        NotFound,
        StateError,
        Unavailable,
    )
    from kvstate.journal import Event
    from kvstate.lifecycle import Lifecycle, Move, Outcome
    from kvstate.namespace import Namespace
    from kvstate.remote import RemoteStore, connect
    from kvstate.state import Entry
    from kvstate.store import Store
    from kvstate.store import open_store as open  # noqa: A004  (kvstate.open reads well)

__all__ = [
    "Artifact",
    "Artifacts",
    "Compacted",
    "Conflict",
    "Damaged",
    "Denied",
    "Entry",
    "Event",
    "Exists",
    "Full",
    "Incompatible",
    "InvalidConfig",
    "InvalidName",
    "InvalidValue",
    "Lifecycle",
    "Move",
    "Namespace",
    "NotFound",
    "Outcome",
    "Problem",
    "RemoteStore",
    "StateError",
    "Store",
    "Unavailable",
    "__version__",
    "connect",
    "open",
]

_HOMES = {
    "kvstate.artifact_files": ("Artifact",),
    "kvstate.artifacts": ("Artifacts",),
    "kvstate.check": ("Problem",),
    "kvstate.errors": (
        "Compacted",
        "Conflict",
        "Damaged",
        "Denied",
        "Exists",
        "Full",
        "Incompatible",
        "InvalidConfig",
        "InvalidName",
        "InvalidValue",
        "NotFound",
        "StateError",
        "Unavailable",
    ),
    "kvstate.journal": ("Event",),
    "kvstate.lifecycle": ("Lifecycle", "Move", "Outcome"),
    "kvstate.remote": ("RemoteStore", "connect"),
    "kvstate.namespace": ("Namespace",),
    "kvstate.state": ("Entry",),
    "kvstate.store": ("Store", "open"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'kvstate' has no attribute {name!r}")
    value = getattr(import_module(home), "open_store" if name == "open" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
