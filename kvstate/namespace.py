"""One namespace: a mutable mapping of keys to values, and all that a mapping has no word for.

It is put together from `KeyBase` (where keys are), `KeyPast` (what they were), `KeyReading` (what
they are) and, here, what changes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kvstate.clock import NEVER, deadline_ns
from kvstate.errors import Conflict, InvalidName, InvalidValue, NotFound
from kvstate.journal import Spilled
from kvstate.key_past import check_limit
from kvstate.key_reading import KeyReading, Used
from kvstate.keys import Conditions, KeyWriter, check_only_if, increased
from kvstate.names import check_key
from kvstate.records import SPILLED, Envelope
from kvstate.typed import encode_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime, timedelta

    from kvstate.codec import Value
    from kvstate.journal import Change

__all__ = ["Namespace", "Upserted", "Used"]


class Upserted(NamedTuple):
    """What `upsert_many` found: how many keys it was given, made, changed and left alone."""

    total: int
    new: int
    changed: int
    unchanged: int


class Namespace(KeyReading):
    """A mutable mapping of keys to values; also all that a mapping has no word for."""

    def set(
        self,
        key: str,
        value: Value,
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        if_revision: int | None = None,
        keep_ttl: bool = False,
    ) -> int:
        """Set the key; give the revision. Durable when this returns.

        Without ``ttl`` or ``expires_at`` it lives as long as the namespace's settings say, by
        default for ever; ``ttl=math.inf`` is for ever, ``keep_ttl`` as long as it did anyway.
        `Exists` with ``if_absent`` when the key is there, `NotFound` with ``if_present`` when it is
        not, `Conflict` when its revision is not ``if_revision`` (0: absent).
        """
        data = check_key(key)
        payload, value = encode_value(value)
        state, name = self._state, self._name_bytes
        if ttl is not None or expires_at is not None:  # refuse it before anything is written
            deadline_ns(state.clock.now_ns(), ttl, expires_at)
        conditions = None
        if if_absent or if_present or if_revision is not None:
            conditions = Conditions(absent=if_absent, present=if_present, revision=if_revision)

        def run(change: Change, blobs: list[Spilled]) -> int:
            writer = KeyWriter(state, change, state.made(name, change))
            revision = writer.set(
                data,
                blobs[0] if blobs else payload,
                value,
                ttl=ttl,
                expires_at=expires_at,
                keep_ttl=keep_ttl,
                conditions=conditions,
            )
            writer.finish()
            return revision

        return state.commit(run, (payload,) if len(payload) > state.inline_bytes_max else ())

    def _encoded(
        self, mapping: Mapping[str, Value]
    ) -> tuple[list[tuple[bytes, bytes | int, Value]], list[bytes]]:
        """Give (key, payload or number of a large one, value) each, and the large ones."""
        large: list[bytes] = []
        pairs: list[tuple[bytes, bytes | int, Value]] = []
        limit = self._state.inline_bytes_max
        for key, given in mapping.items():
            data = check_key(key)
            payload, value = encode_value(given)
            if len(payload) > limit:
                pairs.append((data, len(large), value))
                large.append(payload)
            else:
                pairs.append((data, payload, value))
        return pairs, large

    def set_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Set all these keys in one transaction; give the revision."""
        pairs, large = self._encoded(mapping)
        deadline_ns(self._state.clock.now_ns(), ttl, expires_at)

        def run(writer: KeyWriter, change: Change, blobs: list[Spilled]) -> int:
            for data, payload, value in pairs:
                stored = blobs[payload] if isinstance(payload, int) else payload
                writer.set(data, stored, value, ttl=ttl, expires_at=expires_at)
            return change.revision

        if not pairs:
            return self._state.journal.revision()
        revision: int = self._change(run, large)
        return revision

    def upsert_many(
        self,
        mapping: Mapping[str, Value],
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> Upserted:
        """Set those of these keys that are absent or have another value, in one transaction.

        A key that has this value already costs no write, no revision and keeps its expiry.
        """
        pairs, large = self._encoded(mapping)
        deadline_ns(self._state.clock.now_ns(), ttl, expires_at)

        def run(writer: KeyWriter, change: Change, blobs: list[Spilled]) -> Upserted:
            counts = {"new": 0, "changed": 0, "unchanged": 0}
            for data, payload, value in pairs:
                stored = blobs[payload] if isinstance(payload, int) else payload
                old = writer.live(data)
                if old is not None and self._is(old, stored, value):
                    counts["unchanged"] += 1
                    if isinstance(stored, Spilled):
                        self._state.blobs.shift(change, stored.blob, {0: -2})
                    continue
                writer.set(data, stored, value, ttl=ttl, expires_at=expires_at)
                counts["new" if old is None else "changed"] += 1
            return Upserted(len(pairs), **counts)

        upserted: Upserted = self._change(run, large)
        return upserted

    def _is(self, old: Envelope, stored: bytes | Spilled, value: Value) -> bool:
        if isinstance(stored, bytes) and not old.form & SPILLED:
            if stored == old.payload:
                return True
            if len(stored) != len(old.payload):
                return False
        found = self._state.value(old)
        return bool(found == value) and encode_value(found)[0] == _canonical(found, value)

    def delete(self, key: str, *, if_revision: int | None = None) -> bool:
        """Delete the key; say whether it was there. `Conflict` when ``if_revision`` is not its."""
        data = check_key(key)

        def run(_: Change, writer: KeyWriter | None) -> bool:
            if writer is None:
                if if_revision:
                    raise Conflict(key, f"expected revision {if_revision}, it is absent")
                return False
            return writer.delete(data, if_revision)

        return bool(self._change_if_there(run))

    def delete_prefix(self, prefix: str) -> int:
        """Delete the keys that begin with ``prefix``, in one transaction; say how many."""
        data = _prefix_bytes(prefix)

        def run(_: Change, writer: KeyWriter | None) -> int:
            return 0 if writer is None else writer.delete_prefix(data)

        return int(self._change_if_there(run))

    def clear(self) -> None:
        """Delete every key, in one transaction."""
        self.delete_prefix("")

    def expire(
        self,
        key: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
        only_if: str | None = None,
        if_revision: int | None = None,
    ) -> bool:
        """Let the key expire after so many seconds, or at a moment; say whether that is so now.

        False when the key is absent, or not as ``only_if`` wants: ``absent`` or ``present`` (an
        expiry), ``longer`` or ``shorter`` (than it would live anyway). The key's value, revision
        and modification time stay.
        """
        if ttl is None and expires_at is None:
            raise InvalidValue("expire", "give ttl or expires_at")
        check_only_if(only_if)
        deadline_ns(self._state.clock.now_ns(), ttl, expires_at)
        return self._set_expiry(
            key, lambda now_ns: deadline_ns(now_ns, ttl, expires_at), only_if, if_revision
        )

    def persist(self, key: str) -> bool:
        """Let the key never expire; say whether it was there."""
        return self._set_expiry(key, lambda _now_ns: NEVER)

    def touch(self, key: str, ttl: float | timedelta | None = None) -> bool:
        """Let the key live for ``ttl``, or the namespace's TTL, from now on; say if it was there.

        Without either it keeps the expiry that it has.
        """
        if ttl is None:
            space = self._space()
            ttl = None if space is None else space.settings.ttl
        if ttl is None:
            return self._is_there(key)
        return self.expire(key, ttl)

    def _is_there(self, key: str) -> bool:
        """Say whether the key is there."""
        self._find_prefix()
        return self._envelope(key) is not None

    def _set_expiry(
        self,
        key: str,
        deadline: Callable[[int], int],
        only_if: str | None = None,
        if_revision: int | None = None,
    ) -> bool:
        data = check_key(key)

        def run(_: Change, writer: KeyWriter | None) -> bool:
            if writer is None:
                return False
            return writer.expire(data, deadline, only_if=only_if, if_revision=if_revision)

        return bool(self._change_if_there(run))

    def expire_prefix(
        self,
        prefix: str,
        ttl: float | timedelta | None = None,
        *,
        expires_at: datetime | float | None = None,
    ) -> int:
        """Let all keys that begin with ``prefix`` expire then, in one transaction; say how many."""
        if ttl is None and expires_at is None:
            raise InvalidValue("expire_prefix", "give ttl or expires_at")
        data = _prefix_bytes(prefix)
        deadline_ns(self._state.clock.now_ns(), ttl, expires_at)

        def run(_: Change, writer: KeyWriter | None) -> int:
            if writer is None:
                return 0
            return writer.expire_prefix(data, lambda now_ns: deadline_ns(now_ns, ttl, expires_at))

        return int(self._change_if_there(run))

    def rename(self, old: str, new: str, *, replace: bool = False) -> int:
        """Give the key another name; its TTL and creation time go with it. The revision is given.

        `NotFound` when it is absent; `Exists` when the new name is taken, unless ``replace``.
        """
        source, target = check_key(old), check_key(new)

        def run(_: Change, writer: KeyWriter | None) -> int:
            if writer is None:
                raise NotFound("key", old)
            return writer.rename(source, target, replace=replace)

        return int(self._change_if_there(run))

    def increment(
        self, key: str, by: Any = 1, *, default: Any = 0, ttl: float | timedelta | None = None
    ) -> Any:
        """Add to the number under the key, atomically; give the new one.

        An absent key counts from ``default`` and lives for ``ttl``, or as its namespace says; the
        expiry of one that is there stays. `InvalidValue` when there is no number.
        """
        data = check_key(key)
        increased(key, default, by)
        deadline_ns(self._state.clock.now_ns(), ttl, None)

        def run(writer: KeyWriter, _change: Change, _blobs: list[Spilled]) -> Any:
            old = writer.live(data)
            value = increased(key, default if old is None else writer.value(old), by)
            payload, value = encode_value(value)
            _check_inline(key, payload, self._state.inline_bytes_max)
            kept = old is not None
            writer.set(data, payload, value, ttl=None if kept else ttl, keep_ttl=kept)
            return value

        return self._change(run)

    def append(self, key: str, *items: Value, limit: int | None = None) -> int:
        """Append to the list under the key, atomically; give its length.

        An absent key is an empty list; ``limit`` keeps only the last so many. `InvalidValue` when
        there is no list, or it gets too large for one record: set it as a whole then.
        """
        data = check_key(key)
        check_limit(limit)

        def run(writer: KeyWriter, _change: Change, _blobs: list[Spilled]) -> int:
            old = writer.live(data)
            value = [] if old is None else writer.value(old)
            if not isinstance(value, list):
                raise InvalidValue(f"value of {key!r}", f"{type(value).__name__} is no list")
            value += items
            if limit is not None:
                value = value[max(0, len(value) - limit) :]
            payload, value = encode_value(value)
            _check_inline(key, payload, self._state.inline_bytes_max)
            writer.set(data, payload, value, keep_ttl=True)
            return len(value)

        return int(self._change(run))


def _check_inline(key: str, payload: bytes, limit: int) -> None:
    if len(payload) > limit:
        raise InvalidValue(
            f"value of {key!r}", f"it would have {len(payload)} bytes, {limit} fit: set it whole"
        )


def _prefix_bytes(prefix: object) -> bytes:
    if not isinstance(prefix, str):
        raise InvalidName("key prefix", prefix, f"it is {type(prefix).__name__}, not text")
    try:
        return prefix.encode()
    except UnicodeEncodeError:
        raise InvalidName("key prefix", prefix, "it is not valid UTF-8") from None


def _canonical(found: Value, value: Value) -> bytes:
    """Give the bytes of ``value`` with its mappings in the order of ``found``: 1 is not 1.0."""
    return encode_value(_reordered(found, value))[0]


def _reordered(found: Value, value: Value) -> Value:
    if isinstance(found, dict) and isinstance(value, dict):
        return {key: _reordered(found[key], value[key]) for key in found if key in value}
    if isinstance(found, list) and isinstance(value, list | tuple):
        return [_reordered(*pair) for pair in zip(found, value, strict=True)]
    return value
