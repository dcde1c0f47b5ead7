"""How much room there is: of a tier's disk, less what has to stay free, less what quotas forbid.

What `df` and programs that look before they write are told. A tier's view is as large as the disk
that the tier is on; what a tenant or a namespace may not have, is not free there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from kvstate.names import NAME_BYTES_MAX

if TYPE_CHECKING:
    from kvstate.store import Store

__all__ = ["Room"]


class Quota(NamedTuple):
    """What someone may have, and has; None for as much as there is."""

    bytes_max: int | None
    bytes_used: int
    names_max: int | None
    names_used: int


class Room:
    """The room in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of_artifact(self, tier: int, identity: int) -> os.statvfs_result:
        """Give the room in a tier for the tenant of a folder or an artifact."""
        store = self._store
        place = store.blobs.places[tier]
        found, kept = place.space(), place.free_bytes_min
        path = store.catalog.path(identity)
        section = store.catalog.policies.ruling().policy.section(path)
        if not path or (section.bytes_max is None and section.artifacts_max is None):
            return _left(found, kept, None)
        tenant = store.catalog.walk_path((path.partition("/")[0],))
        totals = None if tenant is None else store.catalog.totals(tenant.id)
        artifacts, size = (totals.artifacts, totals.bytes) if totals else (0, 0)
        return _left(found, kept, Quota(section.bytes_max, size, section.artifacts_max, artifacts))

    def of_namespace(self, name: str | None) -> os.statvfs_result:
        """Give the room for a namespace's values, which lie among the records."""
        store = self._store
        found, kept = os.statvfs(store.path), store.blobs.places[0].free_bytes_min
        space = None if name is None else store.space(name)
        if name is None or space is None:
            return _left(found, kept, None)
        settings, used = space.settings, store.namespace(name).used()
        return _left(
            found, kept, Quota(settings.bytes_max, used.bytes, settings.keys_max, used.keys)
        )


def _left(found: os.statvfs_result, kept: int, quota: Quota | None) -> os.statvfs_result:
    """Take what has to stay free, and what a quota forbids, from what a disk has."""
    unit = found.f_frsize
    blocks, free = found.f_blocks, max(0, found.f_bfree - -(-kept // unit))
    available = max(0, found.f_bavail - -(-kept // unit))
    files, files_free = found.f_files, found.f_ffree
    if quota is not None and quota.bytes_max is not None:
        left = max(0, quota.bytes_max - quota.bytes_used) // unit
        blocks, free, available = (
            min(blocks, -(-quota.bytes_max // unit)),
            min(free, left),
            min(available, left),
        )
    if quota is not None and quota.names_max is not None:
        files, files_free = quota.names_max, max(0, quota.names_max - quota.names_used)
    return os.statvfs_result(
        (
            found.f_bsize,
            unit,
            blocks,
            free,
            available,
            files,
            files_free,
            files_free,
            found.f_flag,
            NAME_BYTES_MAX,
            found.f_fsid,
        )
    )
