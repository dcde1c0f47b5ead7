"""The rules in force: what the settings say, and what was changed at run time, kept in the store.

``M policy`` holds the changes, in the shape of the settings; ``M assessed`` the fingerprint of the
rules by which every artifact's place in the due index was last found. Whoever has other rules than
those (another settings file, a change since) lets what it writes be looked at at once, and a
lifecycle run looks at everything again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstate.codec import decode, digest, encode
from kvstate.errors import InvalidValue
from kvstate.keyspace import meta_key
from kvstate.policy import Policy, fitted
from kvstate.records import open_envelope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvstate.engine import Engine, Reader, Transaction
    from kvstate.journal import Change

__all__ = ["ASSESSED", "Policies", "Ruling", "merged"]

_POLICY = meta_key("policy")
ASSESSED = meta_key("assessed")

log = logging.getLogger("kvstate")


class Ruling(NamedTuple):
    """The rules in force: as a policy, as plain data, and their fingerprint (16 bytes)."""

    policy: Policy
    settings: dict[str, Any]
    fingerprint: bytes


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings with changes before them; tenants are merged one by one."""
    whole = {**base, **{key: value for key, value in changes.items() if key != "tenants"}}
    tenants = dict(base.get("tenants") or {})
    for tenant, given in (changes.get("tenants") or {}).items():
        tenants[tenant] = {**tenants.get(tenant, {}), **given}
    if tenants:
        whole["tenants"] = tenants
    return whole


class Policies:
    """The rules of a store, as this process sees them."""

    def __init__(self, engine: Engine, base: Mapping[str, Any]) -> None:
        """Take the settings' rules; `InvalidValue` says which of them is wrong."""
        self._engine = engine
        self._base = dict(base)
        self._last: tuple[bytes | None, Ruling] = (None, self._ruling({}))

    def _ruling(self, changes: Mapping[str, Any]) -> Ruling:
        settings = merged(self._base, changes)
        # Sorted, so that the same rules have the same fingerprint however they were written.
        return Ruling(Policy.of(settings), settings, digest(encode(_sorted(settings))))

    def _fitting(self, changes: Mapping[str, Any]) -> Ruling:
        """Give the rules; where this process' settings do not fit what was changed, they give way.

        Who made the change had other settings than these: no reason to refuse all work here.
        """
        try:
            return self._ruling(changes)
        except InvalidValue as error:
            log.warning("the settings give way to what was configured in the store: %s", error)
        base = fitted(self._base, changes)
        tenants = dict(base.get("tenants") or {})
        for tenant, given in (changes.get("tenants") or {}).items():
            tenants[tenant] = fitted(tenants.get(tenant, {}), given)
        settings = merged({**base, "tenants": tenants}, changes)
        policy = Policy.of(settings, yielding=True)
        return Ruling(policy, settings, digest(encode(_sorted(settings))))

    def ruling(self, reader: Reader | Engine | None = None) -> Ruling:
        """Give the rules in force."""
        data = (reader or self._engine).get(_POLICY)
        known, ruling = self._last
        if data != known:
            changes = {} if data is None else decode(open_envelope(_POLICY, data).payload)
            ruling = self._fitting(changes)
            self._last = (data, ruling)
        return ruling

    def in_force(self, tx: Transaction) -> tuple[Policy, bool]:
        """Give the rules, and whether everything was looked at under them."""
        found: tuple[Policy, bool] | None = tx.memo.get(self)
        if found is None:
            ruling = self.ruling(tx)
            found = tx.memo[self] = (ruling.policy, self.assessed(tx, ruling))
        return found

    def assessed(self, reader: Reader | Engine, ruling: Ruling) -> bool:
        """Say whether everything was looked at under these rules."""
        data = reader.get(ASSESSED)
        return data is not None and open_envelope(ASSESSED, data).payload == ruling.fingerprint

    def adopt(self, change: Change) -> None:
        """Take note that everything was looked at under the rules in force."""
        change.seal(ASSESSED, self.ruling(change.tx).fingerprint)
        change.tx.memo.clear()

    def changes(self, reader: Reader | Engine | None = None) -> dict[str, Any]:
        """Give what was changed at run time, as plain data."""
        data = (reader or self._engine).get(_POLICY)
        return {} if data is None else dict(decode(open_envelope(_POLICY, data).payload))

    def change(self, change: Change, options: Mapping[str, Any]) -> Ruling:
        """Change some of the rules; None takes a change back. `InvalidValue`, and nothing done."""
        before = self.changes(change.tx)
        after = {**before, **{k: v for k, v in options.items() if k != "tenants"}}
        tenants = {name: dict(given) for name, given in (before.get("tenants") or {}).items()}
        given_tenants = options.get("tenants", {})
        if given_tenants is not None and not isinstance(given_tenants, dict):
            raise InvalidValue("tenants", "it is no table of tenants")
        for tenant, given in (given_tenants or {}).items():
            if given is None:
                tenants.pop(tenant, None)
            elif not isinstance(given, dict):
                raise InvalidValue(f"tenants.{tenant}", "it is no table of settings")
            elif kept := _without_none({**tenants.get(tenant, {}), **given}):
                tenants[tenant] = kept
            else:
                tenants.pop(tenant, None)
        after["tenants"] = None if "tenants" in options and given_tenants is None else tenants
        after = _without_none(after)
        if not after.get("tenants"):
            after.pop("tenants", None)
        ruling = self._ruling(after)
        if after == before:
            return ruling
        if after:
            change.seal(_POLICY, encode(after))
        else:
            change.tx.delete(_POLICY)
        change.tx.memo.clear()
        change.say("policy", "", "", encode(after), encode(before))
        return ruling


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return [[key, _sorted(value[key])] for key in sorted(value, key=str)]
    return [_sorted(each) for each in value] if isinstance(value, list | tuple) else value
