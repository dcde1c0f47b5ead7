"""Extended attributes: which there are, which are computed, which a user may set."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from kvstate.blobs import TIERS
from kvstate.clock import datetime_of
from kvstatefs.nodes import refuse

if TYPE_CHECKING:
    from kvstate.nodes import File
    from kvstate.state import Entry
    from kvstate.store import Store

__all__ = [
    "COMPUTED",
    "HOLD",
    "TIER",
    "TTL",
    "computed_of_entry",
    "computed_of_file",
    "set_hold",
    "set_tier",
    "user_attribute",
]

COMPUTED: Final = "user.kvstate."
"""What the names of computed attributes begin with; nobody may set one but these."""
TTL: Final = "user.kvstate.ttl"
TIER: Final = "user.kvstate.tier"
HOLD: Final = "user.kvstate.hold"
_USER: Final = "user."
_NAME_BYTES_MAX: Final = 255
_ATTRIBUTES_BYTES_MAX: Final = 65536


def computed_of_file(store: Store, file: File) -> dict[str, bytes]:
    """Give what the store knows of an artifact."""
    artifact = store.artifacts.stat(store.catalog.path(file.id))
    facts = {
        "tier": TIERS[file.tier],
        "digest": artifact.digest,
        "revision": str(file.revision),
        "size": str(file.size),
        "created": artifact.created_at.isoformat(),
        "modified": artifact.modified_at.isoformat(),
    }
    if artifact.due_at is not None:
        facts["due"] = artifact.due_at.isoformat()
    if artifact.holds:
        facts["hold"] = ", ".join(sorted(artifact.holds))
    if artifact.problem:
        facts["problem"] = artifact.problem
    if artifact.sha256:
        facts["sha256"] = artifact.sha256
    return {COMPUTED + name: value.encode() for name, value in facts.items()}


def computed_of_entry(entry: Entry, now_ns: int) -> dict[str, bytes]:
    """Give what the store knows of a key; ``expires`` and ``ttl`` only where it has a TTL."""
    facts = {"revision": str(entry.revision), "type": type(entry.value).__name__}
    if entry.expires_at_ns:
        facts["expires"] = datetime_of(entry.expires_at_ns).isoformat()
        facts["ttl"] = f"{max(0, entry.expires_at_ns - now_ns) / 1e9:.3f}"
    return {COMPUTED + name: value.encode() for name, value in facts.items()}


def set_tier(store: Store, file: File, value: bytes | None) -> None:
    """Move an artifact to a tier, given by its name."""
    if value is None:
        refuse(errno.ENOTSUP)
    tier = value.decode("utf-8", "replace").strip()
    if tier not in TIERS:
        refuse(errno.EINVAL, f"{tier!r} is none of {', '.join(TIERS)}")
    store.moving.move(
        lambda reader: store.catalog.node(file.id, reader), TIERS.index(tier), why="xattr"
    )


def set_hold(store: Store, file: File, value: bytes | None, flags: int) -> None:
    """Hold an artifact (``CASE`` or ``CASE: reason``), or release it (``-CASE``, or None).

    None releases the only hold; EINVAL when there are several, since it does not say which.
    """
    if flags & os.XATTR_CREATE and file.holds:
        refuse(errno.EEXIST)
    if (value is None or flags & os.XATTR_REPLACE) and not file.holds:
        refuse(errno.ENODATA)
    if value is None:
        if len(file.holds) > 1:
            refuse(errno.EINVAL, f"there are {len(file.holds)} holds: set -CASE to release one")
        store.catalog.release(file, next(iter(file.holds)), "xattr")
        return
    case, _, reason = value.decode("utf-8", "strict").strip().partition(":")
    if not case.startswith("-"):
        store.catalog.hold(file, case.strip(), reason.strip())
    elif case[1:].strip() in file.holds:
        store.catalog.release(file, case[1:].strip(), reason.strip())
    else:
        refuse(errno.ENODATA)


def user_attribute(name: str, value: bytes | None, there: dict[str, bytes], flags: int) -> None:
    """Refuse to set (or remove: None) what is no attribute of the user's own.

    ENOTSUP outside `user.` and for computed ones (`cp -a` and `mv` pass over what is not supported,
    and so copy the rest); EEXIST and ENODATA as ``flags`` (XATTR_CREATE, XATTR_REPLACE) and removal
    ask for.
    """
    if not name.startswith(_USER) or len(name) == len(_USER) or name.startswith(COMPUTED):
        refuse(errno.ENOTSUP)
    if len(name.encode()) > _NAME_BYTES_MAX:
        refuse(errno.ERANGE)
    own = sum(len(key) + len(kept) for key, kept in there.items() if not key.startswith(COMPUTED))
    if value is not None and own + len(name) + len(value) > _ATTRIBUTES_BYTES_MAX:
        refuse(errno.ENOSPC, "all of one file may have 64 KiB together")
    if flags & os.XATTR_CREATE and name in there:
        refuse(errno.EEXIST)
    if (value is None or flags & os.XATTR_REPLACE) and name not in there:
        refuse(errno.ENODATA)
