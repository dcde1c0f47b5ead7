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
    from kvstate import aio
    from kvstate.artifact_files import Artifact
    from kvstate.artifact_reading import TrashedArtifact, Verified
    from kvstate.artifacts import Artifacts, Stored
    from kvstate.check import Problem
    from kvstate.drill import Drill
    from kvstate.errors import (
        Compacted,
        Conflict,
        Damaged,
        Denied,
        Exists,
        Full,
        Held,
        Incompatible,
        InvalidConfig,
        InvalidName,
        InvalidValue,
        NotFound,
        QuotaExceeded,
        StateError,
        Unavailable,
    )
    from kvstate.history import Version
    from kvstate.indexes import Range
    from kvstate.journal import Event
    from kvstate.lifecycle import Lifecycle
    from kvstate.locks import Lock
    from kvstate.namespace import Namespace, Upserted, Used
    from kvstate.outcomes import Explanation, Move, Outcome
    from kvstate.remote import RemoteStore, connect
    from kvstate.scrubbing import Scrubbed
    from kvstate.series import Point, Series
    from kvstate.space import NamespaceSettings
    from kvstate.state import Entry
    from kvstate.store import Store
    from kvstate.store import open_store as open  # noqa: A004  (kvstate.open reads well)
    from kvstate.tally import Totals, Usage
    from kvstate.transaction import Transaction

__all__ = [
    "Artifact",
    "Artifacts",
    "Compacted",
    "Conflict",
    "Damaged",
    "Denied",
    "Drill",
    "Entry",
    "Event",
    "Exists",
    "Explanation",
    "Full",
    "Held",
    "Incompatible",
    "InvalidConfig",
    "InvalidName",
    "InvalidValue",
    "Lifecycle",
    "Lock",
    "Move",
    "Namespace",
    "NamespaceSettings",
    "NotFound",
    "Outcome",
    "Point",
    "Problem",
    "QuotaExceeded",
    "Range",
    "RemoteStore",
    "Scrubbed",
    "Series",
    "StateError",
    "Store",
    "Stored",
    "Totals",
    "Transaction",
    "TrashedArtifact",
    "Unavailable",
    "Upserted",
    "Usage",
    "Used",
    "Verified",
    "Version",
    "__version__",
    "aio",
    "connect",
    "open",
]

_HOMES = {
    "kvstate.artifact_files": ("Artifact",),
    "kvstate.artifact_reading": ("TrashedArtifact", "Verified"),
    "kvstate.artifacts": ("Artifacts", "Stored"),
    "kvstate.drill": ("Drill",),
    "kvstate.scrubbing": ("Scrubbed",),
    "kvstate.tally": ("Totals", "Usage"),
    "kvstate.check": ("Problem",),
    "kvstate.errors": (
        "Compacted",
        "Conflict",
        "Damaged",
        "Denied",
        "Exists",
        "Full",
        "Held",
        "Incompatible",
        "InvalidConfig",
        "InvalidName",
        "InvalidValue",
        "NotFound",
        "QuotaExceeded",
        "StateError",
        "Unavailable",
    ),
    "kvstate.history": ("Version",),
    "kvstate.indexes": ("Range",),
    "kvstate.journal": ("Event",),
    "kvstate.lifecycle": ("Lifecycle",),
    "kvstate.outcomes": ("Explanation", "Move", "Outcome"),
    "kvstate.remote": ("RemoteStore", "connect"),
    "kvstate.locks": ("Lock",),
    "kvstate.namespace": ("Namespace", "Upserted", "Used"),
    "kvstate.series": ("Point", "Series"),
    "kvstate.space": ("NamespaceSettings",),
    "kvstate.state": ("Entry",),
    "kvstate.store": ("Store", "open"),
    "kvstate.transaction": ("Transaction",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "aio":
        return import_module("kvstate.aio")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'kvstate' has no attribute {name!r}")
    value = getattr(import_module(home), "open_store" if name == "open" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
