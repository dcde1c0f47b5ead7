"""What a namespace is told to do with its keys: its settings, kept in the store.

The record (key ``N name``) holds ``[identity, settings, fields]``, and ``[mode, uid, gid]`` where
somebody gave it an owner: ``settings`` names only what is not as by default, ``fields`` maps each
indexed path to ``[number, ready]``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvstate.clock import SECOND, seconds_to_ns
from kvstate.codec import decode, encode
from kvstate.errors import InvalidValue
from kvstate.keyspace import state_prefix
from kvstate.records import open_envelope

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Field",
    "NamespaceSettings",
    "Owner",
    "Space",
    "open_space",
    "settings_of",
    "space_payload",
]

HISTORY_MAX: Final = 1_000_000
FIELDS_MAX: Final = 32
_PATH_BYTES_MAX: Final = 255
_ON_EXPIRE: Final = ("delete", "archive")


@dataclass(frozen=True, slots=True)
class NamespaceSettings:
    """The settings of a namespace. Durations are seconds."""

    ttl: float | None = None
    """How long a key lives that is set without ``ttl`` or ``expires_at``; None: for ever."""
    sliding: bool = False
    """Whether reading a key lets it live for ``ttl`` again."""
    history: int = 0
    """How many of a key's newest versions are kept, the current one among them; 0: no history."""
    history_age: float = 30 * 86400.0
    """For how long a version is kept after another took its place."""
    on_expire: str = "delete"
    """``delete``, or ``archive``: the last value becomes the artifact ``NAME/expired/KEY``."""
    index: tuple[str, ...] = ()
    """Paths into values (``stage``, ``meta.owner``) by which `find` finds keys."""
    schema: Any = None
    """JSON Schema that every value set from now on has to fit; None: any value."""
    keys_max: int | None = None
    """Quota: how many keys there may be."""
    bytes_max: int | None = None
    """Quota: how many bytes keys and values may have together."""

    def changed(self, options: Mapping[str, Any]) -> NamespaceSettings:
        """Give these settings with some of them changed; `InvalidValue` says what is wrong."""
        unknown = [name for name in options if name not in _NAMES]
        if unknown:
            raise InvalidValue("configure", f"{unknown[0]!r} is no setting: {', '.join(_NAMES)}")
        return _checked(replace(self, **{k: _settled(k, v) for k, v in options.items()}))


_DEFAULT: Final = NamespaceSettings()
_DEFAULTS: Final = asdict(_DEFAULT)
_NAMES: Final = tuple(_DEFAULTS)


def _settled(name: str, value: Any) -> Any:
    """Give one setting in its own form."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if value is None:
        return _DEFAULTS[name]
    if name == "index":
        if isinstance(value, str) or not all(isinstance(path, str) for path in value):
            raise InvalidValue("index", f"{value!r} is no list of paths")
        return tuple(dict.fromkeys(value))
    return value


def _checked(settings: NamespaceSettings) -> NamespaceSettings:
    seconds_to_ns(settings.history_age, "history_age")
    if settings.ttl is not None:
        seconds_to_ns(settings.ttl, "ttl")
    for name, least, most in (
        ("history", 0, HISTORY_MAX),
        ("keys_max", 0, 2**62),
        ("bytes_max", 0, 2**62),
    ):
        number = getattr(settings, name)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise InvalidValue(name, f"{number!r} is no number from {least} to {most}")
    if not isinstance(settings.sliding, bool):
        raise InvalidValue("sliding", f"{settings.sliding!r} is neither true nor false")
    if settings.sliding and settings.ttl is None:
        raise InvalidValue("sliding", "there is no ttl that could slide: give one")
    _check_index(settings.index)
    if settings.on_expire not in _ON_EXPIRE:
        raise InvalidValue("on_expire", f"{settings.on_expire!r} is neither of {_ON_EXPIRE}")
    return settings


def _check_index(paths: tuple[str, ...]) -> None:
    if len(paths) > FIELDS_MAX:
        raise InvalidValue("index", f"{len(paths)} paths, {FIELDS_MAX} are allowed")
    for path in paths:
        if not all(path.split(".")) or len(path.encode()) > _PATH_BYTES_MAX:
            raise InvalidValue("index", f"{path!r} is no path like 'stage' or 'meta.owner'")


class Field(NamedTuple):
    """One indexed path: its number in the index's keys, and whether the index is whole."""

    path: str
    number: int
    ready: bool


class Owner(NamedTuple):
    """Who owns a namespace, and what others may do with it: for those who see it as a folder."""

    mode: int
    uid: int
    gid: int


class Space(NamedTuple):
    """A namespace as a transaction sees it."""

    name: str
    number: int
    prefix: bytes
    settings: NamespaceSettings
    fields: tuple[Field, ...]
    plain: bool
    """Whether a key's record is all there is to write."""
    owner: Owner | None = None
    """None when nobody said: whoever shows it as a folder owns it then."""

    @property
    def ttl_ns(self) -> int | None:
        """The default time to live."""
        return None if self.settings.ttl is None else round(self.settings.ttl * SECOND)


def settings_of(fields: Mapping[str, Any]) -> NamespaceSettings:
    """Give settings from a mapping, as a record or a wire has it; what is not known is left out."""
    known = {name: fields[name] for name in fields if name in _NAMES}
    if "index" in known:
        known["index"] = tuple(known["index"])
    return NamespaceSettings(**known)


def open_space(key: bytes, data: bytes) -> Space:
    """Open a namespace's record."""
    number, kept, fields, *owner = decode(open_envelope(key, data).payload)
    space = made_space(
        key[1:].decode(),
        number,
        settings_of(kept),
        tuple(Field(path, *facts) for path, facts in fields.items()),
    )
    return space._replace(owner=Owner(*owner[0])) if owner else space


def made_space(
    name: str, number: int, settings: NamespaceSettings, fields: tuple[Field, ...]
) -> Space:
    """Put a namespace together."""
    plain = not (
        settings.history
        or fields
        or settings.schema is not None
        or settings.keys_max is not None
        or settings.bytes_max is not None
    )
    return Space(name, number, state_prefix(number), settings, fields, plain)


def space_payload(space: Space) -> bytes:
    """Give the payload of a namespace's record."""
    kept = {k: v for k, v in asdict(space.settings).items() if v != _DEFAULTS[k]}
    fields = {field.path: [field.number, field.ready] for field in space.fields}
    owner = [] if space.owner is None else [list(space.owner)]
    return encode([space.number, kept, fields, *owner])
