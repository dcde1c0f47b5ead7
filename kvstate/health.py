"""Whether a store is well, and what is wrong with it if it is not.

    {"status": "degraded", "says": "the cold tier at '/data/cold' is unavailable: ...",
     "problems": [{"what": "tier", "why": "..."}],
     "read_only": false, "revision": 4711}

``ok``: nothing is wrong. ``degraded``: something wants looking at, and the rest goes on.
``failed``: the store cannot be used until it is opened again, or repaired.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvstate.errors import StateError
from kvstate.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kvstate.store import Store

__all__ = ["Health", "Trouble", "health_of", "health_text", "troubles_in"]

_NEARLY_FULL: Final = 0.9


class Trouble(NamedTuple):
    """One thing that is wrong: with what (store, map, readers, tier, disk, damage, lifecycle)."""

    what: str
    why: str


class Health(NamedTuple):
    """How a store is."""

    status: str
    troubles: tuple[Trouble, ...]
    read_only: bool
    revision: int | None


def health_of(store: Store, stats: Mapping[str, Any] | None = None) -> Health:
    """Look how a store is; ``stats`` are its figures, if they are known already. Never raises."""
    figures: dict[str, Any] = {}
    fatal = [Trouble("store", why)] if (why := store.engine.failure()) else []
    try:
        figures.update(store.stats() if stats is None else stats)
    except (StateError, OSError) as error:
        fatal.append(Trouble("store", str(error)))
    found = [*fatal, *(troubles_in(figures) if figures else ())]
    status = "failed" if fatal else "degraded" if found else "ok"
    return Health(status, tuple(found), store.read_only, figures.get("revision"))


def troubles_in(stats: Mapping[str, Any]) -> Iterator[Trouble]:
    """Give what a store's figures say is wrong."""
    used = stats["records_bytes"] - stats["records_free_bytes"]
    if stats["map_bytes"] and used > _NEARLY_FULL * stats["map_bytes"]:
        sizes = f"{format_size(used)} of {format_size(stats['map_bytes'])}"
        yield Trouble("map", f"{sizes} are used: raise store.map_bytes, or delete something")
    if stats["readers_max"] and stats["readers"] > _NEARLY_FULL * stats["readers_max"]:
        slots = f"{stats['readers']} of {stats['readers_max']} reader slots"
        yield Trouble("readers", f"{slots} are taken: raise store.readers_max")
    for tier, place in stats["places"].items():
        if not place["available"]:
            yield Trouble("tier", place["reason"])
        elif place["free_bytes"] is not None and place["free_bytes"] < place["free_min"]:
            sizes = f"{format_size(place['free_bytes'])} free, {format_size(place['free_min'])}"
            yield Trouble("disk", f"the {tier} tier has {sizes} stay so: free some space there")
    yield from _of_contents(stats)


def _of_contents(stats: Mapping[str, Any]) -> Iterator[Trouble]:
    damaged = stats["damaged"]["blobs"]
    if damaged:
        yield Trouble("damage", f"{damaged} contents are in quarantine: run `kvstate check`")
    if stats["failed"]:
        yield Trouble("lifecycle", f"{stats['failed']} artifacts could not be moved yet")
    last = stats["last_run"]
    if last is not None and last["errors"]:
        yield Trouble("lifecycle", f"the last run met {last['errors']} errors")


def health_text(health: Health) -> bytes:
    """Give it as JSON whose first line says to a person how the store is."""
    rest = {
        "problems": [trouble._asdict() for trouble in health.troubles],
        "read_only": health.read_only,
        "revision": health.revision,
    }
    says = "; ".join(trouble.why for trouble in health.troubles) or "nothing is wrong"
    first = f'{{"status": {_json(health.status)}, "says": {_json(says)},\n'
    lines = [f" {_json(name)}: {_json(value)}" for name, value in rest.items()]
    return (first + ",\n".join(lines) + "}\n").encode("utf-8", "replace")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
