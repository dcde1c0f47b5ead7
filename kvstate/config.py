"""The settings file: `kvstate.toml`, read once at the top and passed down.

A store's own ``kvstate.toml`` holds for everyone who opens the store; ``--config FILE`` stands in
for it. ``KVSTATE_<SECTION>_<KEY>`` overrides one setting, and ``HOT_RETENTION_DAYS``,
``WARM_RETENTION_DAYS`` and ``COLD_RETENTION_DAYS`` the three ages. Whatever is unknown, of the
wrong type or out of range is an `InvalidConfig` that names the file, the line and the key.
A tier's settings are the section ``[tiers.cold]``, and ``KVSTATE_TIERS_COLD_PATH`` and the like.
Sizes may be written as "64KiB", permissions as "0600".
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from typing import TYPE_CHECKING, Any

from kvstate.errors import InvalidConfig, InvalidValue
from kvstate.policy import Policy
from kvstate.settings import StoreSettings, TierSettings, parse_compression, tier_paths
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
    "TierSection",
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

    hot_days: float | str = 7.0
    """Age at which an artifact leaves the hot tier; this and the next two may be "never"."""
    warm_days: float | str = 30.0
    """Age at which an artifact leaves the warm tier."""
    cold_days: float | str = 90.0
    """Age at which an artifact is purged. Without `trash_days` nothing brings it back."""
    floor_days: float = 0.0
    """No rule purges what was written less long ago."""
    trash_days: float = 0.0
    """What is deleted or purged can be undeleted for so long. Its disk space is free after that."""
    sha256: bool = False
    """Keep a SHA-256 of every artifact, too. Writing takes longer: about 0.6 s for a GB."""
    rate: int = 0
    """The most bytes a second that a run copies, as a number or like "50MiB"; 0 is no limit."""
    threads: int = 2
    """How many copies a run has under way at once."""
    scrub_days: float = 30.0
    """The daemon reads all that is stored once in so long, to find damage; 0: never."""
    scrub_rate: int = 100 << 20
    """The most bytes a second that this reads; 0 is no limit."""


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


class TierSection(_Section, frozen=True, kw_only=True):
    """Where a tier's files lie, and how."""

    path: str = ""
    """Its folder, relative to the store's; empty for `tiers/<tier>` in the store."""
    compression: str = "none"
    """"none", "zstd", or "zstd:1" (fast) to "zstd:19" (small); the cold tier's default is zstd."""
    free_min: int = 16 << 20
    """What stays free on its file system. More room for others; writes are refused sooner."""


class ColdSection(TierSection, frozen=True, kw_only=True):
    """The cold tier is seldom read: compressing it costs little."""

    compression: str = "zstd:3"


SECTIONS: dict[str, type[_Section]] = {
    "store": StoreSection,
    "lifecycle": LifecycleSection,
    "journal": JournalSection,
    "daemon": DaemonSection,
    "mount": MountSection,
    "tiers.hot": TierSection,
    "tiers.warm": TierSection,
    "tiers.cold": ColdSection,
}
_TIERS = "tiers"
_AGES = ("hot_days", "warm_days", "cold_days")
_RETENTION = {f"{tier.upper()}_RETENTION_DAYS": f"{tier}_days" for tier in ("hot", "warm", "cold")}
_NOT_SETTINGS = {"KVSTATE_SOCKET", "KVSTATE_STORE", "KVSTATE_REQUIRE_FUSE"}
_TEXTS = {"socket", "socket_mode", "mount", "options", "path", "compression"}
_SIZES = {
    "rate",
    "scrub_rate",
    "map_bytes",
    "inline_bytes_max",
    "bytes_max",
    "frame_bytes_max",
    "free_min",
}


class Config(Struct, frozen=True, kw_only=True):
    """All settings, checked; and where each came from (``origins["daemon.socket"]``)."""

    store: StoreSection
    lifecycle: LifecycleSection
    journal: JournalSection
    daemon: DaemonSection
    mount: MountSection
    tiers: dict[str, TierSection]
    rules: dict[str, Any]
    """The rest of the lifecycle's rules: floor, trash, SHA-256, rules, tenants."""
    origins: dict[str, str]

    def store_settings(self) -> StoreSettings:
        """Give what `kvstate.open` takes."""
        return StoreSettings(
            map_bytes=self.store.map_bytes,
            readers_max=self.store.readers_max,
            inline_bytes_max=self.store.inline_bytes_max,
            journal_bytes_max=self.journal.bytes_max,
            journal_age_seconds=self.journal.age_days * 86400,
            hot_days=_days(self.lifecycle.hot_days),
            warm_days=_days(self.lifecycle.warm_days),
            cold_days=_days(self.lifecycle.cold_days),
            rules=self.rules,
            move_bytes_per_second=self.lifecycle.rate,
            move_threads=self.lifecycle.threads,
            scrub_days=self.lifecycle.scrub_days,
            scrub_bytes_per_second=self.lifecycle.scrub_rate,
            tiers=(
                _tier(self.tiers["hot"]),
                _tier(self.tiers["warm"]),
                _tier(self.tiers["cold"]),
            ),
        )

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Give the settings by section and key, as plain values; rules and tenants are apart."""
        return {name: to_builtins(self._section(name)) for name in SECTIONS}

    def _section(self, name: str) -> _Section:
        group, _, tier = name.partition(".")
        section: _Section = self.tiers[tier] if tier else getattr(self, group)
        return section


def _tier(section: TierSection) -> TierSettings:
    return TierSettings(
        path=section.path or None,
        compression_level=parse_compression(section.compression),
        free_bytes_min=section.free_min,
    )


def load(store: Path | None, file: Path | None, environ: Mapping[str, str]) -> Config:
    """Read, override and check a store's settings; `InvalidConfig` says what is wrong where."""
    path = file or (None if store is None else store / FILE_NAME)
    text = ""
    if path is not None and (file is not None or path.exists()):
        text = _read(path)
    source = str(path)
    parsed = _parse(source, text)
    rules = _rules(source, text, parsed)
    table = dict(_sections(parsed))
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
    plain = {name: section for name, section in sections.items() if "." not in name}
    tiers = {tier: sections[f"{_TIERS}.{tier}"] for tier in ("hot", "warm", "cold")}
    lifecycle = sections["lifecycle"]
    for key in ("floor_days", "trash_days", "sha256"):
        if getattr(lifecycle, key):
            rules[key] = getattr(lifecycle, key)
    config = Config(**plain, tiers=tiers, rules=rules, origins=origins)  # type: ignore[arg-type]
    _check_ranges(config, store)
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


def _rules(source: str, text: str, table: dict[str, Any]) -> dict[str, Any]:
    """Take the rules and the tenants out of what was read; what is wrong is named by its line."""
    found: dict[str, Any] = {}
    lifecycle = table.get("lifecycle")
    if isinstance(lifecycle, dict) and "rules" in lifecycle:
        found["rules"] = lifecycle.pop("rules")
    if "tenants" in table:
        found["tenants"] = table.pop("tenants")
    try:
        Policy.of(found)
    except InvalidValue as error:
        where = str(error.facts[0])
        at = f"{source}:{_line_of_part(text, where)}"
        raise InvalidConfig(at, f"{where}: {error.facts[1]}") from None
    return found


def _line_of_part(text: str, where: str) -> int:
    """Give the line of ``lifecycle.rules[1].glob`` or ``tenants.vip.hot_days``."""
    table, number, key = re.fullmatch(r"(.*?)(?:\[(\d+)\])?(?:\.([^.]+))?", where).groups()  # type: ignore[union-attr]
    if number is None:
        return _line_of(text, table, key)
    heads = [
        at
        for at, line in enumerate(text.splitlines(), 1)
        if (head := re.match(r"\s*\[\[([^\[\]]+)\]\]", line)) and _dotted(head[1]) == table
    ]
    if int(number) >= len(heads):
        return _line_of(text, *table.rsplit(".", 1))
    first = heads[int(number)]
    for at, line in enumerate(text.splitlines()[first:], first + 1):
        if re.match(r"\s*\[", line):
            break
        if re.match(rf"\s*[\"']?{re.escape(key or '')}[\"']?\s*=", line) and key:
            return at
    return first


def _days(value: float | str) -> float:
    return math.inf if value == "never" else float(value)


def _sections(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give the sections by name, those within [tiers] as "tiers.cold"."""
    for name, settings in table.items():
        if name == _TIERS and isinstance(settings, dict):
            for tier, inner in settings.items():
                yield f"{_TIERS}.{tier}", inner
        else:
            yield name, settings


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
    wanted = section if key is None else f"{section}.{key}"
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[([^\[\]=]+)\]", line)
        if header:
            inside = _dotted(header[1])
            if key is None and _leads_to(section, inside):
                return number
        word = re.match(r"([^#=\[]+)=", line)
        if word and not header:
            found = _dotted(f"{inside}.{word[1]}" if inside else word[1])
            if _leads_to(found, wanted) or (key is None and _leads_to(section, found)):
                return number
    return 1


def _dotted(name: str) -> str:
    """Give a dotted name without its blanks and quotes."""
    return ".".join(part.strip(" \t\"'") for part in name.split("."))


def _leads_to(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def _overrides(environ: Mapping[str, str]) -> Iterator[tuple[str, str, Any, str]]:
    for variable, text in environ.items():
        if variable in _RETENTION:
            yield "lifecycle", _RETENTION[variable], _scalar(text), variable
        if not variable.startswith("KVSTATE_") or variable in _NOT_SETTINGS:
            continue
        section, _, key = variable.removeprefix("KVSTATE_").lower().partition("_")
        if section == _TIERS:
            tier, _, key = key.partition("_")
            section = f"{_TIERS}.{tier}"
            if section not in SECTIONS:
                why = f"unknown section [{section}]{_nearest(section, SECTIONS)}"
                raise InvalidConfig(f"${variable}", why)
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
        except (ValidationError, InvalidValue, InvalidConfig) as error:
            why = error.facts[1] if isinstance(error, InvalidConfig) else str(error)
            why = str(why).partition(" - at ")[0]
            raise InvalidConfig(origins[f"{name}.{key}"], f"{name}.{key}: {why}") from None
    return convert(numbers, kind)


def _number(key: str, value: Any) -> Any:
    """Give the number that a text stands for, where a size or permissions are wanted."""
    if key in _SIZES and isinstance(value, str):
        value = parse_size(value)
    if key == "free_min" and isinstance(value, int):
        TierSettings(free_bytes_min=value)
    if key == "path" and isinstance(value, str):
        TierSettings(path=value or None)
    if key in _AGES and isinstance(value, str) and value != "never":
        raise InvalidValue("days", f"{value!r} is neither a number nor 'never'")
    if key == "compression" and isinstance(value, str):
        parse_compression(value)
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


def _check_ranges(config: Config, store: Path | None) -> None:
    """Let the settings themselves refuse what cannot work; name where it came from."""
    try:
        settings = config.store_settings()
        if store is not None:
            tier_paths(store, settings.tiers)
    except InvalidConfig as error:
        keys = str(error.facts[0])
        found = [f"{k} ({v})" for k, v in config.origins.items() if k.partition(".")[2] in keys]
        raise InvalidConfig(", ".join(found) or keys, str(error.facts[1])) from None
    for key, low, high in (("frame_bytes_max", 4096, 1 << 30), ("connections_max", 1, 1 << 16)):
        value = getattr(config.daemon, key)
        if not low <= value <= high:
            at = config.origins[f"daemon.{key}"]
            raise InvalidConfig(at, f"daemon.{key}: {value} is not between {low} and {high}")
