"""Commands on keys: get, set, incr, expire, del, keys."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from kvstate.cli.doors import open_door
from kvstate.cli.exits import DONE, NOT_FOUND
from kvstate.cli.output import print_json, print_line, value_line
from kvstate.durations import parse_duration
from kvstate.errors import Conflict, InvalidValue, NotFound
from kvstate.facts import entry_facts
from kvstate.jsonview import from_json

if TYPE_CHECKING:
    from argparse import Namespace

    from kvstate.codec import Value

__all__ = ["delete", "expire", "get", "increment", "names", "put"]

_MISSING: Any = object()


def get(options: Namespace) -> int:
    """Print a key's value: text and bytes as they are, anything else as JSON."""
    with open_door(options) as store:
        namespace = store.namespace(options.namespace)
        if options.revision is not None:
            value = namespace.get(options.key, _MISSING, revision=options.revision)
            facts = {"key": options.key, "value": value, "as_of": options.revision}
        else:
            entry = namespace.entry(options.key)
            value = _MISSING if entry is None else entry.value
            facts = {} if entry is None else entry_facts(entry)
    if value is _MISSING:
        raise NotFound("key", options.key)
    if options.json:
        print_json(facts)
    elif isinstance(value, bytes):
        sys.stdout.buffer.write(value)
    else:
        print_line(value_line(value))
    return DONE


def put(options: Namespace) -> int:
    """Set a key."""
    value = _value(options)
    with open_door(options) as store:
        revision = store.namespace(options.namespace).set(
            options.key,
            value,
            ttl=None if options.ttl is None else _ttl(options.ttl),
            if_absent=options.if_absent,
            if_revision=options.if_revision,
            keep_ttl=options.keep_ttl,
        )
    if options.json:
        print_json({"key": options.key, "revision": revision})
    return DONE


def _ttl(text: str) -> float:
    return math.inf if text == "never" else parse_duration(text)


def increment(options: Namespace) -> int:
    """Add to the number under a key, and print it."""
    try:
        by = from_json(options.by)
    except InvalidValue:
        raise InvalidValue("BY", f"{options.by!r} is no number") from None
    with open_door(options) as store:
        value = store.namespace(options.namespace).increment(options.key, by)
    print_json({"key": options.key, "value": value}) if options.json else print_json(value)
    return DONE


def expire(options: Namespace) -> int:
    """Let a key expire after a time, or never."""
    with open_door(options) as store:
        namespace = store.namespace(options.namespace)
        done = namespace.expire(options.key, _ttl(options.ttl), only_if=options.only_if)
        if not done and options.key not in namespace:
            raise NotFound("key", options.key)
    if not done:
        raise Conflict(options.key, f"its expiry is not as --only-if {options.only_if} wants")
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
