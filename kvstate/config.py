"""The settings file: `kvstate.toml`, read once at the top and passed down.

A store's own ``kvstate.toml`` holds for everyone who opens the store; ``--config FILE`` stands in
for it. ``KVSTATE_<SECTION>_<KEY>`` overrides one setting, and ``HOT_RETENTION_DAYS``,
``WARM_RETENTION_DAYS`` and ``COLD_RETENTION_DAYS`` the three ages. Whatever is unknown, of the
wrong type or out of range is an `InvalidConfig` that names the file, the line and the key.
Sizes may be written as "64KiB", permissions as "0600".
"""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import TYPE_CHECKING, Any

from kvstate.errors import InvalidConfig, InvalidValue
from kvstate.settings import StoreSettings
from kvstate.sizes import parse_size
from kvstate.structs import Struct, ValidationError, convert, to_builtins

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = [
    "SECTIONS",
    "Config",
    "DaemonSection",
    "JournalSection",
    "LifecycleSection",
    "MountSection",
    "StoreSection",
    "load",
]

FILE_NAME = "kvstate.toml"
DEFAULT = "default"


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class StoreSection(_Section, frozen=True, kw_only=True):
    """How a process opens the store."""

    map_bytes: int = 1 << 40
    """Largest size of the record file, as a number or like "1TiB". Costs address space only."""
    readers_max: int = 1024
    """Reader slots for all processes together; each costs 64 bytes."""
    inline_bytes_max: int = 64 * 1024
    """Content up to this size lies among the records. Larger: fewer files, a larger record file."""


class LifecycleSection(_Section, frozen=True, kw_only=True):
    """When artifacts leave their tiers, in days since they were written or restored."""

    hot_days: float = 7.0
    """Age at which an artifact leaves the hot tier."""
    warm_days: float = 30.0
    """Age at which an artifact leaves the warm tier."""
    cold_days: float = 90.0
    """Age at which an artifact is purged. Nothing brings it back."""


class JournalSection(_Section, frozen=True, kw_only=True):
    """How far back the journal reaches: whichever limit comes first."""

    bytes_max: int = 64 << 20
    """Size above which the oldest entries go. Less reach for watch and audit, less disk."""
    age_days: float = 30.0
    """Age above which entries go."""


class DaemonSection(_Section, frozen=True, kw_only=True):
    """The daemon's socket and its limits."""

    socket: str = ""
    """Path of the Unix socket; empty for $XDG_RUNTIME_DIR/kvstate.sock or /run/kvstate/."""
    socket_mode: int = 0o600
    """Permissions of the socket, in octal. Wider lets other users read and write the store."""
    mount: str = ""
    """Where to mount the tree; empty for nowhere."""
    frame_bytes_max: int = 16 << 20
    """Largest frame that is taken from a client. Each connection may hold that much memory."""
    connections_max: int = 1024
    """Connections at once; each has a thread."""


class MountSection(_Section, frozen=True, kw_only=True):
    """How the tree is mounted."""

    options: str = ""
    """Options as for `kvstatefs -o`, such as "ro" or "allow_other"."""


SECTIONS: dict[str, type[_Section]] = {
    "store": StoreSection,
    "lifecycle": LifecycleSection,
    "journal": JournalSection,
    "daemon": DaemonSection,
    "mount": MountSection,
}
_RETENTION = {f"{tier.upper()}_RETENTION_DAYS": f"{tier}_days" for tier in ("hot", "warm", "cold")}
_NOT_SETTINGS = {"KVSTATE_SOCKET", "KVSTATE_STORE", "KVSTATE_REQUIRE_FUSE"}
_TEXTS = {"socket", "socket_mode", "mount", "options"}
_SIZES = {"map_bytes", "inline_bytes_max", "bytes_max", "frame_bytes_max"}


class Config(Struct, frozen=True, kw_only=True):
    """All settings, checked; and where each came from (``origins["daemon.socket"]``)."""

    store: StoreSection
    lifecycle: LifecycleSection
    journal: JournalSection
    daemon: DaemonSection
    mount: MountSection
    origins: dict[str, str]

    def store_settings(self) -> StoreSettings:
        """Give what `kvstate.open` takes."""
        return StoreSettings(
            map_bytes=self.store.map_bytes,
            readers_max=self.store.readers_max,
            inline_bytes_max=self.store.inline_bytes_max,
            journal_bytes_max=self.journal.bytes_max,
            journal_age_seconds=self.journal.age_days * 86400,
            hot_days=self.lifecycle.hot_days,
            warm_days=self.lifecycle.warm_days,
            cold_days=self.lifecycle.cold_days,
        )

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Give the settings by section and key, as plain values."""
        return {name: to_builtins(getattr(self, name)) for name in SECTIONS}


def load(store: Path | None, file: Path | None, environ: Mapping[str, str]) -> Config:
    """Read, override and check a store's settings; `InvalidConfig` says what is wrong where."""
    path = file or (None if store is None else store / FILE_NAME)
    text = ""
    if path is not None and (file is not None or path.exists()):
        text = _read(path)
    source = str(path)
    table = _parse(source, text)
    origins: dict[str, str] = {}
    for section, key, _ in _pairs(source, text, table):
        origins[f"{section}.{key}"] = f"{source}:{_line_of(text, section, key)}"
    for section, key, value, variable in _overrides(environ):
        table.setdefault(section, {})[key] = value
        origins[f"{section}.{key}"] = f"${variable}"
    sections = {
        name: _checked(name, kind, table.get(name, {}), origins) for name, kind in SECTIONS.items()
    }
    for name, kind in SECTIONS.items():
        for key in kind.__struct_fields__:
            origins.setdefault(f"{name}.{key}", DEFAULT)
    config = Config(**sections, origins=origins)  # type: ignore[arg-type]
    _check_ranges(config)
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidConfig(str(path), f"it is not UTF-8: {error}") from None
    except OSError as error:
        raise InvalidConfig(str(path), error.strerror or str(error)) from None


def _parse(source: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(source, str(error)) from None


def _pairs(source: str, text: str, table: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Give every setting of the file; refuse unknown sections and keys, naming their lines."""
    for section, settings in table.items():
        at = f"{source}:{_line_of(text, section)}"
        if section not in SECTIONS:
            raise InvalidConfig(at, f"unknown section [{section}]{_nearest(section, SECTIONS)}")
        if not isinstance(settings, dict):
            raise InvalidConfig(at, f"{section} must be a section: [{section}]")
        known = SECTIONS[section].__struct_fields__
        for key, value in settings.items():
            if key not in known:
                at = f"{source}:{_line_of(text, section, key)}"
                raise InvalidConfig(at, f"unknown key {section}.{key}{_nearest(key, known)}")
            yield section, key, value


def _nearest(word: str, known: Any) -> str:
    found = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {found[0]}?" if found else f"; known are {', '.join(known)}"


def _line_of(text: str, section: str, key: str | None = None) -> int:
    """Give the line on which a section or one of its keys stands."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*\"?([\w-]+)\"?\s*\]", line)
        if header:
            inside = header[1] == section
            if inside and key is None:
                return number
        word = re.escape(key if inside and key else f"{section}.{key}" if key else section)
        if re.match(rf"\s*\"?{word}\"?\s*[=.]", line):
            return number
    return 1


def _overrides(environ: Mapping[str, str]) -> Iterator[tuple[str, str, Any, str]]:
    for variable, text in environ.items():
        if variable in _RETENTION:
            yield "lifecycle", _RETENTION[variable], _scalar(text), variable
        if not variable.startswith("KVSTATE_") or variable in _NOT_SETTINGS:
            continue
        section, _, key = variable.removeprefix("KVSTATE_").lower().partition("_")
        if section not in SECTIONS:
            continue
        known = SECTIONS[section].__struct_fields__
        if key not in known:
            why = f"unknown key {section}.{key}{_nearest(key, known)}"
            raise InvalidConfig(f"${variable}", why)
        yield section, key, text if key in _TEXTS else _scalar(text), variable


def _scalar(text: str) -> Any:
    """Read an override as TOML would: a number where it is one, else text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(name: str, kind: type[_Section], table: Any, origins: dict[str, str]) -> _Section:
    numbers = {}
    for key, value in table.items():
        try:
            numbers[key] = _number(key, value)
            convert({key: numbers[key]}, kind)
        except (ValidationError, InvalidValue) as error:
            why = str(error).partition(" - at ")[0]
            raise InvalidConfig(origins[f"{name}.{key}"], f"{name}.{key}: {why}") from None
    return convert(numbers, kind)


def _number(key: str, value: Any) -> Any:
    """Give the number that a text stands for, where a size or permissions are wanted."""
    if key in _SIZES and isinstance(value, str):
        return parse_size(value)
    return _mode(value) if key == "socket_mode" else value


def _mode(value: Any) -> int:
    """Read permissions as they are written: in octal, as text ("0600") or 0o600."""
    try:
        mode = value if isinstance(value, int) else int(str(value), 8)
    except ValueError:
        raise InvalidValue("socket_mode", f"{value!r} is no octal number like '0600'") from None
    if not 0 <= mode <= 0o777:
        raise InvalidValue("socket_mode", f"{value!r} is not between 0 and 0777")
    return mode


def _check_ranges(config: Config) -> None:
    """Let the settings themselves refuse what cannot work; name where it came from."""
    try:
        config.store_settings()
    except InvalidConfig as error:
        keys = str(error.facts[0])
        found = [f"{k} ({v})" for k, v in config.origins.items() if k.partition(".")[2] in keys]
        raise InvalidConfig(", ".join(found) or keys, str(error.facts[1])) from None
    for key, low, high in (("frame_bytes_max", 4096, 1 << 30), ("connections_max", 1, 1 << 16)):
        value = getattr(config.daemon, key)
        if not low <= value <= high:
            at = config.origins[f"daemon.{key}"]
            raise InvalidConfig(at, f"daemon.{key}: {value} is not between {low} and {high}")
