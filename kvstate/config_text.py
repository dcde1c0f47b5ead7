"""The settings and the rules that an open store goes by, as a settings file that it would accept.

What is in force is not what a file says: the file may be another by now, and rules are also changed
at run time, in the store. Sections of the processes around the store (daemon, mount) are theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kvstate.policy import TIERS
from kvstate.settings import format_compression
from kvstate.toml import as_toml, spoken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvstate.settings import StoreSettings, TierSettings

__all__ = ["text_in_force"]

_DAY_SECONDS: Final = 86400


def text_in_force(settings: StoreSettings, rules: Mapping[str, Any]) -> str:
    """Give what a store was opened with, and the lifecycle's rules, in the shape of [lifecycle]."""
    given = _said(dict(rules))
    tenants = given.pop("tenants", {})
    tables = {
        "store": {
            "map_bytes": settings.map_bytes,
            "readers_max": settings.readers_max,
            "inline_bytes_max": settings.inline_bytes_max,
        },
        "lifecycle": {
            **given,
            "rate": settings.move_bytes_per_second,
            "threads": settings.move_threads,
            "scrub_days": settings.scrub_days,
            "scrub_rate": settings.scrub_bytes_per_second,
        },
        "journal": {
            "bytes_max": settings.journal_bytes_max,
            "age_days": settings.journal_age_seconds / _DAY_SECONDS,
        },
        "tiers": {tier: _tier(each) for tier, each in zip(TIERS, settings.tiers, strict=True)},
        "tenants": tenants,
    }
    return as_toml({name: table for name, table in tables.items() if table}) + "\n"


def _tier(settings: TierSettings) -> dict[str, Any]:
    return {
        "path": settings.path or "",
        "compression": format_compression(settings.compression_level),
        "free_min": settings.free_bytes_min,
    }


def _said(value: Any) -> Any:
    """Give settings as a file has them: without what is None, with words for what is infinite."""
    if isinstance(value, dict):
        return {key: _said(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_said(each) for each in value]
    return spoken(value)
