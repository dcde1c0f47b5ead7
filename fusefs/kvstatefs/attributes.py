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

__all__ = ["COMPUTED", "TTL", "computed_of_entry", "computed_of_file", "user_attribute"]

COMPUTED: Final = "user.kvstate."
"""What the names of computed attributes begin with; nobody may set one, but for a key's TTL."""
TTL: Final = "user.kvstate.ttl"
_USER: Final = "user."
_NAME_BYTES_MAX: Final = 255


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
    if flags & os.XATTR_CREATE and name in there:
        refuse(errno.EEXIST)
    if (value is None or flags & os.XATTR_REPLACE) and name not in there:
        refuse(errno.ENODATA)
