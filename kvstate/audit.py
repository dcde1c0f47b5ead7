"""The journal as an audit trail: what was done to artifacts, one flat record each.

A record is made from an `Event` alone, so it can be made again at any time, and says:

    timestamp      when it was committed: ISO 8601 in UTC, to the microsecond
    event_type     written, deleted, renamed, updated, purged, trashed, undeleted, held, released,
                   promoted_to_warm|cold (to a colder tier), restored_to_hot|warm (to a hotter one)
    tenant_id, workflow_id, artifact_id
                   the parts of the name; None where a folder that was renamed has none
    age_days       since the artifact was last written; None when the journal does not know
    dry_run        False: what a dry run would do is in no journal
    actor, reason, revision
    tier, from_tier, size_bytes, digest, to (of what was renamed)
                   where they are known

Keys of namespaces are no artifacts: what happens to them is in the journal alone.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from kvstate.clock import SECOND
from kvstate.errors import Compacted, InvalidValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstate.codec import Value
    from kvstate.journal import Event

__all__ = ["Journaled", "audit_record", "audited", "newest_events"]

_DAY_NS: Final = 86400 * SECOND
_TIERS: Final = ("hot", "warm", "cold")
_TYPES: Final = {
    "put": "written",
    "remove": "deleted",
    "rename": "renamed",
    "update": "updated",
    "purge": "purged",
    "trash": "trashed",
    "undelete": "undeleted",
    "hold": "held",
    "release": "released",
}


class Journaled(Protocol):
    """What has a journal: a store, in this process or in another."""

    def revision(self) -> int:
        """Give the newest revision."""
        ...

    def journal(
        self, since: int = 0, limit: int | None = None, *, namespace: str | None = None
    ) -> Iterator[Event]:
        """Give the events after a revision, oldest first."""
        ...


def audit_record(event: Event) -> dict[str, object] | None:
    """Give the audit record of an event; None when it is not about an artifact."""
    event_type = _type_of(event)
    if event.scope or event_type is None:
        return None
    after, before = _states(event)
    tenant, workflow, artifact = (*event.name.split("/", 2), None, None)[:3]
    record: dict[str, object] = {
        "timestamp": event.at.isoformat(timespec="microseconds"),
        "event_type": event_type,
        "tenant_id": tenant,
        "workflow_id": workflow,
        "artifact_id": artifact,
        "age_days": _age_days(event, after or before),
        "dry_run": False,
        "actor": event.actor,
        "reason": event.why,
        "revision": event.revision,
    }
    known = {
        "tier": after.get("tier"),
        "from_tier": before.get("tier") if before.get("tier") != after.get("tier") else None,
        "size_bytes": (after or before).get("size"),
        "digest": (after or before).get("digest"),
        "to": _target(event),
    }
    return record | {key: value for key, value in known.items() if value is not None}


def _states(event: Event) -> tuple[dict[str, Value], dict[str, Value]]:
    """Give what is said of the artifact's state after the event, and before it."""
    after = event.value if isinstance(event.value, dict) else {}
    before = event.previous if isinstance(event.previous, dict) else {}
    if event.kind == "rename":  # what it replaced was another artifact
        return {key: value for key, value in after.items() if key != "to"}, {}
    return after, before


def _type_of(event: Event) -> str | None:
    after, before = _states(event)
    if event.kind == "update" and not after:
        return None  # of a folder
    if event.kind not in {"move", "restore"}:
        return _TYPES.get(event.kind)
    source, target = before.get("tier"), after.get("tier")
    if target not in _TIERS:
        return None
    hotter = source in _TIERS and _TIERS.index(target) < _TIERS.index(source)
    return f"{'restored' if hotter or event.kind == 'restore' else 'promoted'}_to_{target}"


def _age_days(event: Event, state: dict[str, Value]) -> float | None:
    if event.kind == "put":
        return 0.0
    written_ns = state.get("written")
    if not isinstance(written_ns, int):
        return None
    return max(0.0, round((event.at_ns - written_ns) / _DAY_NS, 6))


def _target(event: Event) -> str | None:
    if event.kind != "rename" or not isinstance(event.value, dict):
        return None
    to: str | None = event.value.get("to")
    return to


def audited(
    store: Journaled,
    since: int = 0,
    limit: int | None = None,
    *,
    tenant: str | None = None,
    artifact: str | None = None,
    newest: int | None = None,
) -> Iterator[dict[str, object]]:
    """Give the audit records after a revision, oldest first: `Store.audit`."""

    def wanted(event: Event) -> bool:
        return _is_about(event, tenant, artifact)

    if newest is None:
        found: Iterator[Event] = filter(wanted, store.journal(since, namespace=""))
    elif limit is None:
        found = iter(newest_events(store, newest, since, namespace="", wanted=wanted))
    else:
        raise InvalidValue("newest", "give limit or newest, not both")
    records = map(audit_record, found)
    return islice((record for record in records if record is not None), limit)


def _is_about(event: Event, tenant: str | None, artifact: str | None) -> bool:
    """Whether an event has an audit record, and is about this tenant and this artifact."""
    if event.scope or _type_of(event) is None:
        return False
    names = [name for name in (event.name, _target(event)) if name is not None]
    if tenant is not None and all(name.split("/", 1)[0] != tenant for name in names):
        return False
    if artifact is None or artifact in names:
        return True
    # A folder above the artifact got another name, and the artifact with it.
    return event.kind == "rename" and any(artifact.startswith(f"{name}/") for name in names)


def newest_events(
    store: Journaled,
    count: int,
    since: int = 0,
    *,
    namespace: str | None = None,
    wanted: Callable[[Event], bool] = lambda _event: True,
) -> list[Event]:
    """Give the newest events that are wanted, at most so many, oldest first.

    The journal is read backwards in parts that double, so that it costs what is given and not what
    is kept. `Compacted` when it had to read what was trimmed (``since=0`` asks for what there is).
    """
    if count < 0:
        raise InvalidValue("newest", f"{count} is negative")
    found: list[Event] = []
    upper, width, floor = store.revision(), max(count, 1), since
    while upper > floor and len(found) < count:
        lower = max(floor, upper - width)
        part: deque[Event] = deque(maxlen=count - len(found))
        try:
            for event in store.journal(lower, namespace=namespace):
                if event.revision > upper:
                    break
                if wanted(event):
                    part.append(event)
        except Compacted as error:
            if since:
                raise
            floor = max(lower, error.oldest - 1)
            continue
        found[:0] = part
        upper, width = lower, 2 * width
    return found
