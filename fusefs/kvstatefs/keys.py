"""Keys as files' contents: which text a value has, which value a text means, what an edit keeps.

A value's file holds text and bytes as they are, anything else as JSON. What is written to an
existing key becomes a value of the same kind (JSON where it was structured, `InvalidValue` when it
does not parse) and keeps its TTL; a new file is text when it is valid UTF-8, else bytes. Editors
that write a new file and rename it over the old one, or rename the old one away first, change the
value and leave its kind and its TTL alone.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstate.clock import SECOND
from kvstate.durations import parse_duration
from kvstate.errors import InvalidValue, NotFound
from kvstate.jsonview import from_json, text_of_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstate.codec import Value
    from kvstate.state import Entry
    from kvstate.store import Store
    from kvstate.transaction import Transaction

__all__ = ["Keys", "Place", "value_of_text"]

_TEXTS_KEPT: Final = 64
_NOTES_KEPT: Final = 64
_EDIT_SECONDS: Final = 60.0


class Place(NamedTuple):
    """Where a key is."""

    namespace: str
    key: str


class Left(NamedTuple):
    """What a key was that was renamed away: a value like its own, its expiry; how long to know."""

    like: Value
    expires_ns: int
    until: float


def value_of_text(data: bytes, like: Value = "") -> Value:
    """Give the value that a file's content means, where there was one ``like`` this before."""
    if isinstance(like, bytes):
        return data
    if not isinstance(like, str):
        return from_json(data)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class Keys:
    """The keys of a store, as their files are read, written and renamed."""

    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._now = now
        self._texts: dict[tuple[Place, int], bytes] = {}
        self._left: dict[Place, Left] = {}
        self._made: dict[Place, float] = {}

    def entry(self, place: Place) -> Entry | None:
        """Give a key's entry; None when it is absent or has expired. Looking is not reading."""
        return self.store.namespace(place.namespace).entry(place.key, peek=True)

    def read(self, place: Place) -> None:
        """Take note that a key's file is being read: a sliding TTL begins anew."""
        self.store.namespace(place.namespace).entry(place.key)

    def touch(self, place: Place) -> None:
        """Let a key live for its namespace's TTL again, as `touch` asks."""
        self.store.namespace(place.namespace).touch(place.key)

    def set_ttl(self, place: Place, text: bytes | None) -> None:
        """Let a key expire after a time (``90``, ``1h30m``), or never (None, ``never``)."""
        namespace = self.store.namespace(place.namespace)
        if text is None or text.strip() == b"never":
            namespace.persist(place.key)
        else:
            namespace.expire(place.key, parse_duration(text.decode("ascii", "replace").strip()))

    def text(self, place: Place, entry: Entry) -> bytes:
        """Give the content of a key's file."""
        known = self._texts.get((place, entry.revision))
        if known is None:
            if len(self._texts) >= _TEXTS_KEPT:
                self._texts = {}
            known = self._texts[place, entry.revision] = text_of_value(entry.value)
        return known

    def put(self, place: Place, data: bytes) -> None:
        """Set a key to what its file holds now, keeping its kind and its TTL."""
        namespace = self.store.namespace(place.namespace)
        there = namespace.entry(place.key, peek=True)
        if there is not None:
            namespace.set(place.key, value_of_text(data, there.value), keep_ttl=True)
            return
        left = self._left.pop(place, None)
        if left is None or left.until < self._now():
            namespace.set(place.key, value_of_text(data))
            self._note_made(place)
            return
        try:
            value = value_of_text(data, left.like)
        except InvalidValue:
            value = value_of_text(data)
        alive = left.expires_ns > self.store.clock.now_ns()
        namespace.set(place.key, value, expires_at=left.expires_ns / SECOND if alive else None)

    def _note_made(self, place: Place) -> None:
        if len(self._made) >= _NOTES_KEPT:
            self._made = {}
        self._made[place] = self._now() + _EDIT_SECONDS

    def exchange(self, source: Place, target: Place) -> None:
        """Let two keys of a namespace have each other's values and expiries, in one step."""

        def run(change: Transaction) -> None:
            namespace = change.namespace(source.namespace)
            entries = [namespace.entry(place.key) for place in (source, target)]
            for place, entry in zip((target, source), entries, strict=True):
                if entry is None:
                    raise NotFound("key", source.key if place is target else target.key)
                expires_at = entry.expires_at_ns / SECOND if entry.expires_at_ns else None
                ttl = None if entry.expires_at_ns else math.inf
                namespace.set(place.key, entry.value, ttl=ttl, expires_at=expires_at)

        self.store.transact(run)

    def rename(self, source: Place, target: Place, *, replace: bool = True) -> None:
        """Rename a key within its namespace, over another if there is one and ``replace`` is on.

        A key that was made a moment ago and takes another's name is an editor's new version of it:
        it becomes what it replaces before it takes the name. `InvalidValue` when it cannot.
        """
        namespace = self.store.namespace(source.namespace)
        entry, there = self.entry(source), self.entry(target)
        if entry is None:
            raise NotFound("key", source.key)
        made = self._made.pop(source, 0.0) > self._now()
        if there is not None and replace and made and isinstance(entry.value, str | bytes):
            value = value_of_text(text_of_value(entry.value), there.value)
            expires_at = there.expires_at_ns / SECOND if there.expires_at_ns else None
            if type(value) is not type(entry.value) or expires_at is not None:
                namespace.set(source.key, value, expires_at=expires_at)
        namespace.rename(source.key, target.key, replace=replace)
        if len(self._left) >= _NOTES_KEPT:
            self._left = {}
        self._left[source] = Left(entry.value, entry.expires_at_ns, self._now() + _EDIT_SECONDS)
