"""What a command prints: one JSON object a line, or lines that a person reads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kvstate.clock import datetime_of
from kvstate.jsonview import to_json
from kvstate.policy import TIERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvstate.artifact_files import Artifact
    from kvstate.codec import Value
    from kvstate.journal import Event
    from kvstate.state import Entry
    from kvstate.tally import Totals

__all__ = [
    "artifact_facts",
    "artifact_line",
    "complain",
    "entry_facts",
    "event_facts",
    "event_line",
    "facts_with_times",
    "moment_text",
    "print_json",
    "print_line",
    "print_table",
    "print_tree",
    "printable",
    "total_facts",
    "value_line",
]


def print_line(line: str) -> None:
    """Print a line on standard output."""
    sys.stdout.write(line + "\n")


def complain(message: str) -> None:
    """Print on standard error what went wrong, while the command goes on."""
    sys.stderr.write(f"kvstate: {printable(message)}\n")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns: the first to the left, the others, which are figures, to the right."""
    lines = [head, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    for line in lines:
        figures = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        print_line("  ".join([printable(line[0]).ljust(widths[0]), *figures]))


def print_json(value: Value) -> None:
    """Print a value as one line of JSON."""
    print_line(to_json(value))


def printable(text: str) -> str:
    """Give a text that does to a terminal nothing but show: control characters are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def value_line(value: Value) -> str:
    """Give a value as text: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else to_json(value)


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


def artifact_line(artifact: Artifact) -> str:
    """Give an artifact as one line for a person."""
    at = artifact.modified_at.strftime("%Y-%m-%d %H:%M")
    return printable(f"{artifact.tier:<4} {artifact.size:>12} {at} {artifact.name}")


def total_facts(total: Totals) -> dict[str, object]:
    """Give what a tenant, a workflow or the store holds as a mapping for JSON."""
    tiers = {tier: getattr(total, tier)._asdict() for tier in TIERS}
    counts = {"held": total.held, "failed": total.failed}
    return {"artifacts": total.artifacts, "bytes": total.bytes, **tiers, **counts}


def event_facts(event: Event) -> dict[str, object]:
    """Give an event as a mapping for JSON."""
    facts = facts_with_times(event._asdict())
    return {**facts, "value": event.value, "previous": event.previous}


def event_line(event: Event) -> str:
    """Give an event as one line for a person."""
    name = f"{event.scope}/{event.name}" if event.scope else event.name or "."
    text = f"{event.revision} {moment_text(event.at_ns)} {event.actor} {event.kind} {name}"
    if event.kind == "set":
        text += f" = {value_line(event.value)}"
    if event.kind == "rename" and isinstance(event.value, dict):
        text += f" -> {event.value.get('to')}"
    return printable(text + (f" ({event.why})" if event.why else ""))


def print_tree(facts: Mapping[str, object], indent: str = "") -> None:
    """Print nested facts, a line each."""
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            print_line(f"{indent}{key}:")
            print_tree(value, indent + "  ")
        else:
            shown = "-" if value is None or value in ({}, ()) else value_line(value)
            print_line(f"{indent}{key}: {printable(shown)}")
