"""The command `demo rotation`: artifacts that age, on a store that is thrown away."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from kvstate.cli.exits import DAMAGED, DONE, FAILED
from kvstate.cli.output import artifact_line, print_json, print_line, print_table, printable
from kvstate.clock import SystemClock
from kvstate.demo import Rotation, rotate
from kvstate.facts import artifact_facts, facts_with_times
from kvstate.sizes import format_size

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["rotation"]

_PLANNED_SHOWN: Final = 5
_COUNTERS: Final = ("promoted_to_warm", "promoted_to_cold", "purged", "errors", "seconds")


def rotation(options: Namespace) -> int:
    """Let artifacts age through the tiers, and say what happens."""
    # Its clock is made to jump, so that it says so is no news.
    logging.getLogger("kvstate").setLevel(logging.ERROR)
    with TemporaryDirectory(prefix="kvstate-demo-") as folder:
        shown = rotate(
            Path(folder) / "store",
            SystemClock(),
            count=options.count,
            tenant=options.tenant,
            force_age=options.force_age,
            dry_run=options.dry_run,
        )
    print_json(_facts(shown)) if options.json else _print(shown)
    if any(each.problem for each in shown.verified):
        return DAMAGED
    return FAILED if shown.outcome.errors else DONE


def _facts(shown: Rotation) -> dict[str, object]:
    return {
        "before": shown.before,
        "plan": [facts_with_times(move._asdict()) for move in shown.plan],
        "outcome": facts_with_times(shown.outcome._asdict()),
        "after": shown.after,
        "events": list(shown.events),
        "restored": None if shown.restored is None else artifact_facts(shown.restored),
        "verified": [each._asdict() for each in shown.verified],
    }


def _print(shown: Rotation) -> None:
    print_line(f"Stored {sum(each['artifacts'] for each in shown.before.values())} artifacts:")
    _print_tiers(shown.before)
    print_line(f"\nDue are {len(shown.plan)} moves:")
    for move in shown.plan[:_PLANNED_SHOWN]:
        print_line(printable(f"  {move.source} -> {move.target} {move.name}"))
    if len(shown.plan) > _PLANNED_SHOWN:
        print_line(f"  and {len(shown.plan) - _PLANNED_SHOWN} more")
    outcome = shown.outcome._asdict()
    print_line("\nA dry run, which only counts:" if outcome["dry_run"] else "\nThe lifecycle ran:")
    for name in _COUNTERS:
        value = outcome[name]
        print_line(f"  {name}: {value:.3f}" if isinstance(value, float) else f"  {name}: {value}")
    print_line("\nNow there are:")
    _print_tiers(shown.after)
    print_line("\nThe newest of the audit trail:")
    for event in shown.events:
        name = "/".join(str(event[key]) for key in ("tenant_id", "workflow_id", "artifact_id"))
        print_line(printable(f"  {event['event_type']}: {name}, {event['age_days']} days old"))
    if shown.restored is not None:
        print_line("\nBrought back:")
        print_line(f"  {artifact_line(shown.restored)}")
    damaged = sum(bool(each.problem) for each in shown.verified)
    print_line(f"\nVerified {len(shown.verified)} artifacts: {damaged or 'none'} damaged")


def _print_tiers(tiers: dict[str, dict[str, int]]) -> None:
    rows = [
        (f"  {tier}", str(held["artifacts"]), format_size(held["bytes"]))
        for tier, held in tiers.items()
    ]
    print_table(("  tier", "artifacts", "size"), rows)
