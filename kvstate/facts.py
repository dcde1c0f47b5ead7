"""What is known of keys, artifacts and events as mappings that JSON has a form for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstate.clock import datetime_of
from kvstate.policy import TIERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvstate.artifact_files import Artifact
    from kvstate.journal import Event
    from kvstate.state import Entry
    from kvstate.tally import Totals

__all__ = [
    "artifact_facts",
    "entry_facts",
    "event_facts",
    "facts_with_times",
    "moment_text",
    "total_facts",
]


def moment_text(at_ns: int) -> str | None:
    """Give a moment as ISO text in UTC; None for none."""
    return datetime_of(at_ns).isoformat() if at_ns else None


def facts_with_times(facts: Mapping[str, object]) -> dict[str, object]:
    """Give the facts with each ``..._ns`` time as ISO text under the name without ``_ns``."""
    return {
        key.removesuffix("_ns"): moment_text(value)
        if key.endswith("_ns") and isinstance(value, int)
        else facts_with_times(value)
        if isinstance(value, dict)
        else value
        for key, value in facts.items()
    }


def entry_facts(entry: Entry) -> dict[str, object]:
    """Give an entry as a mapping for JSON."""
    return {**facts_with_times(entry._asdict()), "value": entry.value}


def artifact_facts(artifact: Artifact) -> dict[str, object]:
    """Give an artifact as a mapping for JSON."""
    return {**facts_with_times(artifact._asdict()), "metadata": artifact.metadata}


def total_facts(total: Totals) -> dict[str, object]:
    """Give what a tenant, a workflow or the store holds as a mapping for JSON."""
    tiers = {tier: getattr(total, tier)._asdict() for tier in TIERS}
    counts = {"held": total.held, "failed": total.failed}
    return {"artifacts": total.artifacts, "bytes": total.bytes, **tiers, **counts}


def event_facts(event: Event) -> dict[str, object]:
    """Give an event as a mapping for JSON."""
    facts = facts_with_times(event._asdict())
    return {**facts, "value": event.value, "previous": event.previous}
