"""What an open store may be told, with the price of each turn beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvstate.errors import InvalidConfig, InvalidValue
from kvstate.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StoreSettings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSettings:
    """Settings of one open store; validated when made, passed down, never global."""

    map_bytes: int = 1 << 40
    """Largest size of the record file: address space only; smaller makes `Full` come sooner."""
    readers_max: int = 1024
    """Reader slots for all processes together; each costs 64 bytes of the lock file."""
    inline_bytes_max: int = 64 * 1024
    """Content up to this size lives among the records: fewer fsyncs to write, one copy to read."""
    journal_bytes_max: int = 64 << 20
    """The journal is trimmed beyond this size: less reach for watch and audit, less disk."""
    journal_age_seconds: float = 30 * 86400.0
    """The journal is trimmed beyond this age."""
    hot_days: float = 7.0
    """An artifact leaves the hot tier at this age."""
    warm_days: float = 30.0
    """An artifact leaves the warm tier at this age."""
    cold_days: float = 90.0
    """An artifact is purged at this age."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """What else the lifecycle's rules say, in the shape of ``[lifecycle]``: floor, rules, ..."""
    move_bytes_per_second: int = 0
    """The most that a lifecycle run copies in a second; 0: no limit."""
    move_threads: int = 2
    """How many copies a lifecycle run has under way at once."""

    def policy(self) -> dict[str, Any]:
        """Give the rules of the lifecycle as plain data."""
        ages = {name: getattr(self, name) for name in ("hot_days", "warm_days", "cold_days")}
        return {**ages, **self.rules}

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting."""
        for name, low, high in (
            ("map_bytes", 1 << 20, 1 << 46),
            ("readers_max", 8, 1 << 16),
            ("inline_bytes_max", 0, 1 << 20),
            ("journal_bytes_max", 1 << 16, 1 << 46),
            ("journal_age_seconds", 1.0, 3.2e9),
            ("move_bytes_per_second", 0, 1 << 50),
            ("move_threads", 1, 64),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidConfig(name, f"{value!r} is not between {low} and {high}")
        try:
            Policy.of(self.policy())
        except InvalidValue as error:
            raise InvalidConfig(str(error.facts[0]), str(error.facts[1])) from None
