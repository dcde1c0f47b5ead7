"""The tiers' places of a store that is being opened, and which of them it knows.

The record ``M tiers`` has, for each tier that the store ever wrote to, the identity of the place
that it uses: an envelope of ``{tier: place}``, of revision 0, as no journal tells of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstate.codec import decode, encode
from kvstate.errors import Damaged
from kvstate.keyspace import meta_key
from kvstate.places import Place
from kvstate.records import open_envelope, seal_envelope
from kvstate.settings import tier_paths
from kvstate.tier_folders import Owner

if TYPE_CHECKING:
    from pathlib import Path

    from kvstate.clock import Clock
    from kvstate.engine import Engine, Reader, Transaction
    from kvstate.settings import StoreSettings

__all__ = ["open_places"]

_TIERS = ("hot", "warm", "cold")
_FORMAT_KEY = meta_key("format")
_PLACES_KEY = meta_key("tiers")


def open_places(
    engine: Engine,
    store: Path,
    settings: StoreSettings,
    clock: Clock,
    *,
    signed: bool,
    read_only: bool,
) -> tuple[Place, ...]:
    """Give the places of a store's tiers; no disk is touched before they are used.

    ``signed`` is off for records that do not outlive the process: then any folder will do.
    `InvalidConfig` when two tiers would share a folder.
    """
    paths = tier_paths(store, settings.tiers)
    return tuple(
        Place(
            path,
            tier=tier,
            owner=_owner(engine, tier, clock) if signed else None,
            settings=tier_settings,
            read_only=read_only,
        )
        for tier, path, tier_settings in zip(_TIERS, paths, settings.tiers, strict=True)
    )


def _owner(engine: Engine, tier: str, clock: Clock) -> Owner:
    def remember(place: str) -> None:
        def run(tx: Transaction) -> None:
            places = _places(tx)
            if tier not in places:
                payload = encode({**places, tier: place})
                at_ns = clock.now_ns()
                tx.put(
                    _PLACES_KEY,
                    seal_envelope(
                        _PLACES_KEY, payload, revision=0, created_ns=at_ns, updated_ns=at_ns
                    ),
                )

        engine.txn(run)

    return Owner(
        store=lambda: _store_id(engine),
        known=lambda: _places(engine).get(tier),
        remember=remember,
    )


def _store_id(reader: Reader | Engine) -> str:
    data = reader.get(_FORMAT_KEY)
    facts = None if data is None else decode(open_envelope(_FORMAT_KEY, data).payload)
    if not isinstance(facts, dict) or not isinstance(facts.get("id"), str):
        raise Damaged("the store", "its format record does not say which store it is")
    return str(facts["id"])


def _places(reader: Reader | Engine) -> dict[str, str]:
    data = reader.get(_PLACES_KEY)
    found = {} if data is None else decode(open_envelope(_PLACES_KEY, data).payload)
    if not isinstance(found, dict):
        raise Damaged("the store", "its record of the tiers' places is unreadable")
    return found
