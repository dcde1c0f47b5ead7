"""What a command prints: one JSON object a line, or lines that a person reads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kvstate.facts import moment_text
from kvstate.jsonview import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvstate.artifact_files import Artifact
    from kvstate.codec import Value
    from kvstate.journal import Event

__all__ = [
    "artifact_line",
    "complain",
    "event_line",
    "print_json",
    "print_line",
    "print_table",
    "print_tree",
    "printable",
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


def artifact_line(artifact: Artifact) -> str:
    """Give an artifact as one line for a person."""
    at = artifact.modified_at.strftime("%Y-%m-%d %H:%M")
    return printable(f"{artifact.tier:<4} {artifact.size:>12} {at} {artifact.name}")


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
