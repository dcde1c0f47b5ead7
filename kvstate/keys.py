"""How keys change: the one place that writes a key's record, and all that goes with it.

A `KeyWriter` works on one namespace within one commit: the record and its expiry, the journal's
entry, the former version where there is a history, the secondary indexes, what is counted, and the
quotas. `finish` writes the counts; whoever makes a writer calls it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from kvstate.clock import NEVER, deadline_ns
from kvstate.codec import encode
from kvstate.errors import Conflict, Exists, InvalidValue, NotFound, QuotaExceeded
from kvstate.history import keep_gone, keep_version, renamed_from, versions
from kvstate.indexes import entries
from kvstate.journal import Spilled
from kvstate.keyspace import after_prefix, expiry_key
from kvstate.records import SPILLED, Envelope, open_envelope, seal_envelope, sealed
from kvstate.schemas import check_value
from kvstate.state import ArchiveFirst, expired, journal_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime, timedelta

    from kvstate.codec import Value
    from kvstate.journal import Change
    from kvstate.space import Space
    from kvstate.state import State

__all__ = ["ONLY_IF", "Conditions", "KeyWriter", "check_only_if", "increased"]

ONLY_IF: Final = ("absent", "present", "longer", "shorter")


class Conditions:
    """What has to hold of a key for it to be written."""

    __slots__ = ("absent", "present", "revision")

    def __init__(
        self, *, absent: bool = False, present: bool = False, revision: int | None = None
    ) -> None:
        self.absent = absent
        self.present = present
        self.revision = revision

    def check(self, key: str, old: Envelope | None) -> None:
        """Raise `Exists`, `NotFound` or `Conflict` unless it holds of what is there."""
        if self.absent and old is not None:
            raise Exists("key", key)
        if self.present and old is None:
            raise NotFound("key", key)
        if self.revision is not None and (old.revision if old else 0) != self.revision:
            found = f"its revision is {old.revision}" if old else "it is absent"
            raise Conflict(key, f"expected revision {self.revision}, {found}")


class KeyWriter:
    """Changes the keys of one namespace within one commit."""

    __slots__ = ("_added_bytes", "_added_keys", "_change", "_space", "_state")

    def __init__(self, state: State, change: Change, space: Space) -> None:
        self._state = state
        self._change = change
        self._space = space
        self._added_keys = 0
        self._added_bytes = 0

    # Reading

    def record(self, data: bytes) -> Envelope | None:
        """Give a key's record, also when it has expired and was not swept yet."""
        return self._change.open(self._space.prefix + data)

    def live(self, data: bytes) -> Envelope | None:
        """Give a key's record unless it has expired."""
        envelope = self._change.open(self._space.prefix + data)
        if envelope is None or expired(envelope, self._change.at_ns):
            return None
        return envelope

    def value(self, envelope: Envelope) -> Value:
        """Give what a record holds."""
        return self._state.value(envelope)

    def _live_below(self, prefix: bytes) -> Iterator[tuple[bytes, Envelope]]:
        start = self._space.prefix + prefix
        skip = len(self._space.prefix)
        for full, record in list(self._change.tx.scan(start, after_prefix(start))):
            envelope = open_envelope(full, record)
            if not expired(envelope, self._change.at_ns):
                yield full[skip:], envelope

    # Writing

    def set(
        self,
        data: bytes,
        stored: bytes | Spilled,
        value: Value,
        *,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
        keep_ttl: bool = False,
        conditions: Conditions | None = None,
    ) -> int:
        """Set a key; give the revision."""
        change, space = self._change, self._space
        if not space.plain:
            self._make_room(len(data) + (0 if isinstance(stored, Spilled) else len(stored)))
        found = change.open(space.prefix + data)
        old = found
        if found is not None and found.expires_ns and found.expires_ns <= change.at_ns:
            old = None
        if conditions is not None:
            conditions.check(data.decode(), old)
        if ttl is not None or expires_at is not None:
            expires_ns = deadline_ns(change.at_ns, ttl, expires_at)
        elif keep_ttl and old is not None:
            expires_ns = old.expires_ns
        else:
            expires_ns = NEVER if space.settings.ttl is None else self._default_expiry()
        self.put(data, stored, value, expires_ns, found)
        return change.revision

    def _default_expiry(self) -> int:
        ttl = self._space.settings.ttl
        return NEVER if ttl is None else deadline_ns(self._change.at_ns, ttl, None)

    def put(
        self,
        data: bytes,
        stored: bytes | Spilled,
        value: Value,
        expires_ns: int,
        old: Envelope | None,
    ) -> None:
        """Write a key's record and what goes with it; ``old`` is the record that was there."""
        change, space = self._change, self._space
        full = space.prefix + data
        key = data.decode()
        created_ns, version = change.at_ns, 1
        previous: bytes | Spilled | None = None
        if not space.plain:
            version = self._prepare(data, stored, value, old)
        if old is not None:
            if old.expires_ns and old.expires_ns != expires_ns:
                change.tx.delete(expiry_key(old.expires_ns, space.number, data))
            previous = old.payload if not old.form & SPILLED else Spilled(old.payload)
            if old.expires_ns and old.expires_ns <= change.at_ns:
                self._check_archived(data)
                change.say("expire", space.name, key, None, previous)
                previous = None
            else:
                created_ns = old.created_ns
                version = max(version, old.version + 1)
        if stored.__class__ is bytes and (old is None or not old.form & SPILLED):
            payload = stored
            flags = 0
            if old is None:
                self._added_keys += 1
                self._added_bytes += len(data) + len(payload)
            else:
                self._added_bytes += len(payload) - len(old.payload)
        else:
            self._count(data, stored, old)
            flags = SPILLED if isinstance(stored, Spilled) else 0
            payload = stored.blob if isinstance(stored, Spilled) else stored
        times = created_ns, change.at_ns, expires_ns
        record = sealed(full, payload, change.revision, version, times, flags)
        change.tx.put(full, record)
        if expires_ns and (old is None or old.expires_ns != expires_ns):
            self._due(expires_ns, data)
        change.say("set", space.name, key, stored, previous)

    def _due(self, expires_ns: int, data: bytes) -> None:
        tx = self._change.tx
        tx.put(expiry_key(expires_ns, self._space.number, data), b"")
        self._change.due(expires_ns)

    def _prepare(
        self, data: bytes, stored: bytes | Spilled, value: Value, old: Envelope | None
    ) -> int:
        """Check and write what only some namespaces have; give the record's version."""
        change, space = self._change, self._space
        settings = space.settings
        if settings.schema is not None:
            check_value(settings.schema, data.decode(), value)
        self._check_quota(data, stored, old)
        if space.fields:
            before = set() if old is None else entries(space, data, self._state.value(old))
            after = entries(space, data, value)
            for entry in before - after:
                change.tx.delete(entry)
            for entry in after - before:
                change.tx.put(entry, b"")
        return self._keep(data, old) if settings.history else 1

    def _keep(self, data: bytes, old: Envelope | None) -> int:
        """Let the former record be a version; give the number of the one that comes."""
        change, space = self._change, self._space
        shift = self._state.shifter(change)
        if old is None:
            last = next(versions(change.tx, space.number, data, reverse=True), None)
            return 1 if last is None else last.version + 1
        keep_version(change, space, data, old, shift)
        if not expired(old, change.at_ns):
            return old.version + 1
        keep_gone(change, space, data, old.version + 1, "expire", shift)
        return old.version + 2

    def remove(self, data: bytes, old: Envelope, kind: str, say: bool = True) -> None:  # noqa: FBT001, FBT002
        """Remove a key's record and what goes with it; ``kind`` is delete or expire."""
        change, space = self._change, self._space
        change.tx.delete(space.prefix + data)
        if old.expires_ns:
            change.tx.delete(expiry_key(old.expires_ns, space.number, data))
        if space.fields:
            for entry in entries(space, data, self._state.value(old)):
                change.tx.delete(entry)
        if space.settings.history:
            shift = self._state.shifter(change)
            keep_version(change, space, data, old, shift)
            keep_gone(change, space, data, old.version + 1, kind, shift)
        self._added_keys -= 1
        self._added_bytes -= self._state.size(change, data, journal_value(old))
        if say:
            change.say(kind, space.name, data.decode(), None, journal_value(old))

    def _check_archived(self, data: bytes) -> None:
        """Raise `ArchiveFirst` where the last value of an expired key must not just go."""
        if self._space.settings.on_expire == "archive":
            raise ArchiveFirst(self._space.number, data)

    def remove_expired(self, data: bytes, old: Envelope) -> bool:
        """Remove an expired key, unless its last value has to become an artifact; say whether."""
        if self._space.settings.on_expire == "archive":
            return False
        self.remove(data, old, "expire")
        return True

    def delete(self, data: bytes, if_revision: int | None = None) -> bool:
        """Delete a key; say whether it was there."""
        old = self.live(data)
        if if_revision is not None and (old is None or old.revision != if_revision):
            found = "it is absent" if old is None else f"its revision is {old.revision}"
            raise Conflict(data.decode(), f"expected revision {if_revision}, {found}")
        if old is None:
            return False
        self.remove(data, old, "delete")
        return True

    def delete_prefix(self, prefix: bytes) -> int:
        """Delete the keys that begin with this; say how many."""
        count = 0
        for data, envelope in self._live_below(prefix):
            self.remove(data, envelope, "delete")
            count += 1
        return count

    def expire(
        self,
        data: bytes,
        deadline: Callable[[int], int],
        *,
        only_if: str | None = None,
        if_revision: int | None = None,
    ) -> bool:
        """Change when a key expires; say whether it was there, and was to be changed."""
        change = self._change
        old = self.live(data)
        if old is None:
            return False
        if if_revision is not None and old.revision != if_revision:
            raise Conflict(
                data.decode(), f"expected revision {if_revision}, its revision is {old.revision}"
            )
        expires_ns = deadline(change.at_ns)
        if only_if is not None and not _wanted(only_if, old.expires_ns, expires_ns):
            return False
        if expires_ns != old.expires_ns:
            self._write_expiry(data, old, expires_ns)
        return True

    def _write_expiry(self, data: bytes, old: Envelope, expires_ns: int) -> None:
        change, space = self._change, self._space
        full = space.prefix + data
        change.tx.put(
            full,
            seal_envelope(
                full,
                old.payload,
                revision=old.revision,  # the value is the same: who compares revisions goes on
                created_ns=old.created_ns,
                updated_ns=old.updated_ns,
                expires_ns=expires_ns,
                version=old.version,
                flags=old.form & SPILLED,
            ),
        )
        if old.expires_ns:
            change.tx.delete(expiry_key(old.expires_ns, space.number, data))
        if expires_ns:
            self._due(expires_ns, data)
        change.say("ttl", space.name, data.decode(), encode(expires_ns), encode(old.expires_ns))

    def expire_prefix(self, prefix: bytes, deadline: Callable[[int], int]) -> int:
        """Change when all keys that begin with this expire; say how many there are."""
        expires_ns = deadline(self._change.at_ns)
        count = 0
        for data, envelope in self._live_below(prefix):
            if envelope.expires_ns != expires_ns:
                self._write_expiry(data, envelope, expires_ns)
            count += 1
        return count

    def rename(self, source: bytes, target: bytes, *, replace: bool) -> int:
        """Give a key another name; give the revision."""
        change, space = self._change, self._space
        found = self.live(source)
        if found is None:
            raise NotFound("key", source.decode())
        if source == target:
            return found.revision
        previous = self._make_way(target, replace=replace)
        version = 1
        if not space.plain:
            value = self._state.value(found)
            for entry in entries(space, source, value):
                change.tx.delete(entry)
            for entry in entries(space, target, value):
                change.tx.put(entry, b"")
            if space.settings.history:
                shift = self._state.shifter(change)
                version = self._keep(target, None) + 1
                keep_gone(change, space, target, version - 1, renamed_from(source), shift)
                keep_version(change, space, source, found, shift)
                keep_gone(change, space, source, found.version + 1, "delete", shift)
        change.tx.delete(space.prefix + source)
        if found.expires_ns:
            change.tx.delete(expiry_key(found.expires_ns, space.number, source))
            self._due(found.expires_ns, target)
        full = space.prefix + target
        change.tx.put(
            full,
            seal_envelope(
                full,
                found.payload,
                revision=change.revision,
                created_ns=found.created_ns,
                updated_ns=change.at_ns if space.settings.history else found.updated_ns,
                expires_ns=found.expires_ns,
                version=version,
                flags=found.form & SPILLED,
            ),
        )
        self._added_bytes += len(target) - len(source)
        change.say("rename", space.name, source.decode(), encode({"to": target.decode()}), previous)
        return change.revision

    def _make_way(self, target: bytes, *, replace: bool) -> bytes | Spilled | None:
        """Remove what has a name that another key is to get; give its value for the journal."""
        taken = self.record(target)
        if taken is None:
            return None
        if expired(taken, self._change.at_ns):
            self._check_archived(target)
            self.remove(target, taken, "expire")
            return None
        if not replace:
            raise Exists("key", target.decode())
        self.remove(target, taken, "delete", say=False)
        return journal_value(taken)

    # Counting

    def _count(self, data: bytes, stored: bytes | Spilled, old: Envelope | None) -> None:
        if old is None:
            self._added_keys += 1
            self._added_bytes += self._state.size(self._change, data, stored)
        else:
            self._added_bytes += self._state.size(self._change, b"", stored)
            self._added_bytes -= self._state.size(self._change, b"", journal_value(old))

    def _check_quota(self, data: bytes, stored: bytes | Spilled, old: Envelope | None) -> None:
        settings = self._space.settings
        if settings.keys_max is None and settings.bytes_max is None:
            return
        size = self._state.size(self._change, data, stored)
        if old is not None:
            size -= self._state.size(self._change, data, journal_value(old))
        keys = 0 if old is not None else 1
        used = self._state.used(self._space.number, self._change)
        keys_then = used.keys + self._added_keys + keys
        bytes_then = used.bytes + self._added_bytes + size
        too_many = keys and settings.keys_max is not None and keys_then > settings.keys_max
        too_much = size > 0 and settings.bytes_max is not None and bytes_then > settings.bytes_max
        if too_many or too_much:
            limit = f"{settings.keys_max} keys" if too_many else f"{settings.bytes_max} bytes"
            wanted = f"{keys_then} keys" if too_many else f"{bytes_then} bytes"
            raise QuotaExceeded(f"namespace {self._space.name!r}", limit, wanted)

    def _make_room(self, size: int) -> None:
        """When a quota is nearly used up, sweep what has expired first."""
        settings = self._space.settings
        if settings.keys_max is None and settings.bytes_max is None:
            return
        used = self._state.used(self._space.number, self._change)
        keys_then, bytes_then = used.keys + self._added_keys, used.bytes + self._added_bytes + size
        if (settings.keys_max is not None and keys_then >= settings.keys_max) or (
            settings.bytes_max is not None and bytes_then > settings.bytes_max
        ):
            self.finish()
            self._state.sweep_some(self._change)

    def finish(self) -> None:
        """Write what was counted."""
        if self._added_keys or self._added_bytes:
            used = self._state.used(self._space.number, self._change)
            counted = used._replace(
                keys=used.keys + self._added_keys, bytes=used.bytes + self._added_bytes
            )
            self._state.put_usage(self._change, self._space.number, counted)
            self._added_keys = self._added_bytes = 0


def _wanted(only_if: str, before_ns: int, after_ns: int) -> bool:
    """Whether an expiry is to be changed; what never expires outlasts everything."""
    if only_if == "absent":
        return not before_ns
    if only_if == "present":
        return bool(before_ns)
    longer = bool(before_ns) and (not after_ns or after_ns > before_ns)
    shorter = bool(after_ns) and (not before_ns or after_ns < before_ns)
    return longer if only_if == "longer" else shorter


def check_only_if(only_if: object) -> None:
    """Raise `InvalidValue` unless this is one of the conditions of `expire`."""
    if only_if is not None and only_if not in ONLY_IF:
        raise InvalidValue("only_if", f"{only_if!r} is none of {', '.join(ONLY_IF)}")


def increased(key: str, before: Any, by: Any) -> Any:
    """Add to a number; `InvalidValue` when either is none."""
    for what, number in (("by", by), (f"value of {key!r}", before)):
        if isinstance(number, bool) or not isinstance(number, int | float | Decimal):
            raise InvalidValue(what, f"{type(number).__name__} is no number")
    try:
        return before + by
    except TypeError as error:
        raise InvalidValue(f"value of {key!r}", str(error)) from None
