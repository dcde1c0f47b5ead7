"""Changing a namespace's settings while it is in use.

The settings change in one transaction; what has to follow (building an index, dropping one,
dropping a history) is done afterwards in bounded steps, while others read and write. A crash in
between leaves an index that is not ready, or entries that nobody looks at: the same call again goes
on.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from kvstate.codec import encode
from kvstate.errors import Conflict, NotFound
from kvstate.history import drop_versions
from kvstate.indexes import entries
from kvstate.keys import KeyWriter
from kvstate.keyspace import after_prefix, field_prefix, namespace_key, usage_key
from kvstate.names import check_namespace
from kvstate.records import open_envelope
from kvstate.schemas import check_schema
from kvstate.space import Field, NamespaceSettings, made_space
from kvstate.state import ArchiveFirst, expired

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvstate.journal import Change, Spilled
    from kvstate.space import Owner, Space
    from kvstate.state import State

__all__ = ["configure", "own", "remove_namespace"]

STEP_KEYS: Final = 1000


def configure(state: State, name: str, options: Mapping[str, Any]) -> NamespaceSettings:
    """Change some of a namespace's settings; give all of them. The namespace is made if need be."""
    data = check_namespace(name)
    if options.get("schema") is not None:
        check_schema(options["schema"])
    space = state.journal.commit(lambda change: _change(state, data, options, change))
    for field in space.fields:
        if not field.ready:
            _build(state, data, field)
    _clean(state, data)
    return space.settings


def _change(state: State, name: bytes, options: Mapping[str, Any], change: Change) -> Space:
    found = state.found(name, change)
    before = state.made(name, change) if found is None else found
    settings = before.settings.changed(options)
    fields = {field.path: field for field in before.fields}
    number = max([0, *(field.number for field in before.fields)])
    kept = []
    for path in settings.index:
        field = fields.get(path)
        if field is None:
            number += 1
            field = Field(path, number, ready=False)
        kept.append(field)
    after = made_space(before.name, before.number, settings, tuple(kept))
    after = after._replace(owner=before.owner)
    if after == found:
        return after
    if bool(settings.history) != bool(before.settings.history):
        used = state.used(before.number, change)
        state.put_usage(
            change,
            before.number,
            used._replace(floor_revision=change.revision, floor_ns=change.at_ns),
        )
    state.put_space(change, after)
    change.say(
        "configure",
        after.name,
        "",
        encode(asdict(settings)),
        encode(asdict(before.settings)),
    )
    return after


def own(state: State, name: str, change_owner: Callable[[Owner | None], Owner]) -> Owner:
    """Change who owns a namespace, and its mode; give that. `NotFound` when there is none."""
    data = check_namespace(name)

    def run(change: Change) -> Owner:
        space = state.found(data, change)
        if space is None:
            raise NotFound("namespace", name)
        owner = change_owner(space.owner)
        if owner != space.owner:
            state.put_space(change, space._replace(owner=owner))
            settings = encode(asdict(space.settings))
            change.say("configure", name, "", settings, settings, "owner and mode")
        return owner

    return state.journal.commit(run)


def _build(state: State, name: bytes, field: Field) -> None:
    """Enter the existing keys into an index; what is written meanwhile enters itself."""
    start = b""
    while True:

        def step(change: Change, start: bytes = start) -> bytes | None:
            space = state.found(name, change)
            if space is None or field not in space.fields:
                return None
            only = space._replace(fields=(field,))
            begin, end = space.prefix + start, after_prefix(space.prefix)
            last = None
            page = zip(range(STEP_KEYS), change.tx.scan(begin, end), strict=False)
            for full, record in [pair for _, pair in page]:
                last = full
                key = full[len(space.prefix) :]
                # What has expired is entered, too: its removal will look for its entries.
                for entry in entries(only, key, state.value(open_envelope(full, record))):
                    change.tx.put(entry, b"")
            if last is not None:
                return last[len(space.prefix) :] + b"\0"
            ready = tuple(f._replace(ready=True) if f == field else f for f in space.fields)
            state.put_space(change, space._replace(fields=ready))
            return None

        after = state.journal.commit(step)
        if after is None:
            return
        start = after


def _clean(state: State, name: bytes) -> None:
    """Drop what the settings do not want any more: indexes, history."""
    while state.journal.commit(lambda change: _clean_some(state, name, change)):
        pass


def _clean_some(state: State, name: bytes, change: Change) -> bool:
    space = state.found(name, change)
    if space is None:
        return False
    known = {field.number for field in space.fields}
    first = field_prefix(space.number, 0)
    dropped = 0
    low, high = first, field_prefix(space.number, 2**16 - 1)
    while dropped < STEP_KEYS:
        entry = next(iter(change.tx.scan(low, high)), None)
        if entry is None:
            break
        number = int.from_bytes(entry[0][9:11], "big")
        if number in known:
            low = after_prefix(field_prefix(space.number, number))
            continue
        change.tx.delete(entry[0])
        dropped += 1
    if not space.settings.history:
        shift = state.shifter(change)
        dropped += drop_versions(change, space.number, STEP_KEYS, shift)
    return dropped >= STEP_KEYS


def remove_namespace(state: State, name: str) -> bool:
    """Remove a namespace without keys; `Conflict` when it has some; say whether it was there."""
    data = check_namespace(name)

    def run(change: Change, _: list[Spilled]) -> bool:
        space = state.found(data, change)
        if space is None:
            return False
        writer = KeyWriter(state, change, space)
        for full, record in list(change.tx.scan(space.prefix, after_prefix(space.prefix))):
            envelope = open_envelope(full, record)
            if not expired(envelope, change.at_ns):
                raise Conflict(name, "the namespace still has keys")
            key = full[len(space.prefix) :]
            if not writer.remove_expired(key, envelope):
                raise ArchiveFirst(space.number, key)
        shift = state.shifter(change)
        while drop_versions(change, space.number, STEP_KEYS, shift):
            pass
        change.tx.delete(usage_key(space.number))
        change.tx.delete(namespace_key(data))
        change.tx.memo.clear()
        change.say("rmspace", name, "")
        return True

    return state.commit(run)
