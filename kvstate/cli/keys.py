"""Commands on keys: get, set, del, keys."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kvstate.cli.doors import open_door
from kvstate.cli.exits import DONE, NOT_FOUND
from kvstate.cli.output import entry_facts, print_json, print_line, value_line
from kvstate.durations import parse_duration
from kvstate.errors import InvalidValue, NotFound
from kvstate.jsonview import from_json

if TYPE_CHECKING:
    from argparse import Namespace

    from kvstate.codec import Value

__all__ = ["delete", "get", "names", "put"]


def get(options: Namespace) -> int:
    """Print a key's value: text and bytes as they are, anything else as JSON."""
    with open_door(options) as store:
        entry = store.namespace(options.namespace).entry(options.key)
    if entry is None:
        raise NotFound("key", options.key)
    if options.json:
        print_json(entry_facts(entry))
    elif isinstance(entry.value, bytes):
        sys.stdout.buffer.write(entry.value)
    else:
        print_line(value_line(entry.value))
    return DONE


def put(options: Namespace) -> int:
    """Set a key."""
    value = _value(options)
    ttl = None if options.ttl is None else parse_duration(options.ttl)
    with open_door(options) as store:
        revision = store.namespace(options.namespace).set(
            options.key, value, ttl=ttl, if_absent=options.if_absent
        )
    if options.json:
        print_json({"key": options.key, "revision": revision})
    return DONE


def _value(options: Namespace) -> Value:
    text: str = sys.stdin.read() if options.value == "-" else options.value
    if options.type == "json":
        return from_json(text)
    if options.type == "int":
        try:
            return int(text)
        except ValueError:
            raise InvalidValue("VALUE", f"{text!r} is no integer") from None
    return text


def delete(options: Namespace) -> int:
    """Delete keys; say by the exit code whether all of them were there."""
    with open_door(options) as store:
        namespace = store.namespace(options.namespace)
        missing = [key for key in options.keys if not namespace.delete(key)]
    for key in missing:
        sys.stderr.write(f"kvstate: no key {key!r}\n")
    return NOT_FOUND if missing else DONE


def names(options: Namespace) -> int:
    """List the keys of a namespace, or the namespaces."""
    with open_door(options) as store:
        if options.namespace is None:
            for name in store.namespaces():
                print_json({"namespace": name}) if options.json else print_line(name)
            return DONE
        for entry in store.namespace(options.namespace).scan(options.prefix):
            if options.json:
                print_json(entry_facts(entry) if options.values else {"key": entry.key})
            elif options.values:
                print_line(f"{entry.key}\t{value_line(entry.value)}")
            else:
                print_line(entry.key)
    return DONE
