"""A demonstration: artifacts of several workflows age through the tiers, without anybody waiting.

The store's clock is set back while they are written, each to its own age. `rotate` works on a store
that it makes; whoever calls it throws the folder away.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvstate.errors import InvalidValue
from kvstate.names import check_segment
from kvstate.policy import DAY, TIERS
from kvstate.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from kvstate.artifact_files import Artifact
    from kvstate.artifact_reading import Verified
    from kvstate.clock import Clock
    from kvstate.outcomes import Move, Outcome
    from kvstate.store import Store

__all__ = ["Rotation", "rotate"]

_OLDEST_DAYS: Final = 120
_WORKFLOWS: Final = ("weekly_report", "invoices", "renders")
_SIZES: Final = (700, 12_000, 150_000)
_EVENTS_SHOWN: Final = 5


class Rotation(NamedTuple):
    """What happened: ``before`` and ``after`` hold artifacts and bytes of each tier.

    ``restored`` is the artifact that was brought back, None when there was none in a colder tier.
    """

    before: dict[str, dict[str, int]]
    plan: tuple[Move, ...]
    outcome: Outcome
    after: dict[str, dict[str, int]]
    events: tuple[dict[str, object], ...]
    restored: Artifact | None
    verified: tuple[Verified, ...]


class _Behind:
    """A clock that is so much behind another."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.by_ns = 0

    def now_ns(self) -> int:
        return self._clock.now_ns() - self.by_ns


def rotate(
    folder: Path,
    clock: Clock,
    *,
    count: int = 50,
    tenant: str = "acme_corp",
    force_age: bool = False,
    dry_run: bool = False,
) -> Rotation:
    """Store artifacts, run the lifecycle (with ``dry_run`` only count), bring one back, verify all.

    With ``force_age`` they are 0 to 120 days old, evenly; else new. ``folder`` must not be there.
    """
    if not 1 <= count <= 100_000:
        raise InvalidValue("count", f"{count} is not between 1 and 100000")
    check_segment(tenant, "tenant")
    if folder.exists():
        raise InvalidValue("folder", f"{str(folder)!r} is there already")
    behind = _Behind(clock)
    with open_store(folder, clock=behind, actor="demo") as store:
        chance = random.Random(count)  # noqa: S311  (content that differs, not a secret)
        for number in range(count):
            # The oldest first: the store's time goes forward, and the last is written now.
            oldest = _OLDEST_DAYS * DAY if force_age else 0
            behind.by_ns = oldest * (count - 1 - number) // max(1, count - 1)
            name = f"{tenant}/{_WORKFLOWS[number % 3]}/artifact_{number:05}.bin"
            content = chance.randbytes(_SIZES[number // 3 % 3])
            store.artifacts.put(name, content, metadata={"number": number})
        return _show(store, tenant, dry_run=dry_run)


def _show(store: Store, tenant: str, *, dry_run: bool) -> Rotation:
    before = _tiers(store)
    plan = tuple(store.lifecycle.plan())
    outcome = store.lifecycle.run(dry_run=dry_run)
    after = _tiers(store)
    events = tuple(store.audit(tenant=tenant, newest=_EVENTS_SHOWN))
    restored = store.artifacts.restore_all(tenant, limit=1, reason="demonstration")
    verified = tuple(store.artifacts.verify_all())
    return Rotation(
        before, plan, outcome, after, events, restored[0] if restored else None, verified
    )


def _tiers(store: Store) -> dict[str, Any]:
    usage = store.artifacts.usage()
    return {tier: each._asdict() for tier, each in zip(TIERS, usage.tiers, strict=True)}
