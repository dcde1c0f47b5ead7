"""Commands on what keys were and how namespaces are set up: configure, find, history, rollback."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstate.cli.doors import open_door
from kvstate.cli.exits import DONE
from kvstate.cli.output import print_json, print_line, print_tree, printable, value_line
from kvstate.durations import parse_duration
from kvstate.errors import InvalidValue
from kvstate.facts import entry_facts, facts_with_times, moment_text
from kvstate.jsonview import from_json
from kvstate.sizes import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from kvstate.codec import Value

__all__ = ["configure", "find", "history", "rollback"]


def configure(options: Namespace) -> int:
    """Change some of a namespace's settings, and print all of them."""
    given = dict(_setting(text) for text in options.settings)
    with open_door(options) as store:
        namespace = store.namespace(options.namespace)
        settings = store.configure(namespace.name, **given) if given else namespace.settings()
        used = namespace.used()
    facts: dict[str, object] = {**asdict(settings), "used": used._asdict()}
    print_json(facts) if options.json else print_tree(facts)
    return DONE


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidValue(text, "it has not the form NAME=VALUE; NAME= is the default")
    if not value:
        return name, None
    if name in {"ttl", "history_age"}:
        return name, parse_duration(value)
    if name == "bytes_max":
        return name, parse_size(value)
    if name == "index":
        return name, value.split(",")
    if name == "schema":
        return name, from_json(_schema_text(value))
    return name, from_json(value) if value in {"true", "false"} or value.isdigit() else value


def _schema_text(value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue("schema", str(error)) from None


def find(options: Namespace) -> int:
    """Print the entries that have these values in indexed fields."""
    where = dict(_condition(text) for text in options.conditions)
    with open_door(options) as store:
        for entry in store.namespace(options.namespace).find(where=where, limit=options.limit):
            if options.json:
                print_json(entry_facts(entry))
            else:
                print_line(f"{entry.key}\t{value_line(entry.value)}")
    return DONE


def _condition(text: str) -> tuple[str, Value]:
    path, equals, value = text.partition("=")
    if not equals:
        raise InvalidValue(text, "it has not the form FIELD=VALUE")
    try:
        return path, from_json(value)
    except InvalidValue:
        return path, value


def history(options: Namespace) -> int:
    """Print what is kept of a key's past, oldest first."""
    with open_door(options) as store:
        versions = store.namespace(options.namespace).history(options.key, options.limit)
    for version in versions:
        if options.json:
            print_json({**facts_with_times(version._asdict()), "value": version.value})
        else:
            shown = f" = {value_line(version.value)}" if version.kind == "set" else ""
            at = moment_text(version.at_ns)
            print_line(printable(f"{version.revision} {at} {version.kind}{shown}"))
    return DONE


def rollback(options: Namespace) -> int:
    """Set a key to what it was as of a revision."""
    with open_door(options) as store:
        revision = store.namespace(options.namespace).rollback(options.key, options.revision)
    if options.json:
        print_json({"key": options.key, "revision": revision})
    return DONE
