"""What an open store may be told, with the price of each turn beside it."""

from __future__ import annotations

from dataclasses import dataclass

from kvstate.errors import InvalidConfig

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

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting."""
        for name, low, high in (
            ("map_bytes", 1 << 20, 1 << 46),
            ("readers_max", 8, 1 << 16),
            ("inline_bytes_max", 0, 1 << 20),
            ("journal_bytes_max", 1 << 16, 1 << 46),
            ("journal_age_seconds", 1.0, 3.2e9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidConfig(name, f"{value!r} is not between {low} and {high}")
        if not 0 < self.hot_days < self.warm_days < self.cold_days <= 36500:
            raise InvalidConfig(
                "hot_days, warm_days, cold_days",
                f"{self.hot_days:g}, {self.warm_days:g}, {self.cold_days:g} must be positive, "
                f"increase and end within 36500",
            )
