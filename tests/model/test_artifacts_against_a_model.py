"""Random operations on artifacts and their rules against plain Python, through three doors.

`Model` says what docs/artifacts.md promises, with dictionaries and lists; it decides by itself what
a rule matches and what is due. `Twin` does each thing to a store and to the model, and compares.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import kvstate
from kvstate.errors import (
    Conflict,
    Exists,
    Held,
    InvalidName,
    InvalidValue,
    NotFound,
    QuotaExceeded,
)
from kvstate.policy import Policy, Rule
from kvstate.settings import StoreSettings
from kvstate.store import open_store
from kvstated.server import serving
from tests.harness import SECOND, START_NS, ManualClock
from tests.integration.daemons import ROOTS

DAY = 86400 * SECOND
HOUR = 3600 * SECOND
NEVER = 2**63 - 1
TIERS = ("hot", "warm", "cold")
AGES = ("hot_days", "warm_days", "cold_days")
DEFAULTS = {
    **dict(zip(AGES, (7, 30, 90), strict=True)),
    "floor_days": 0,
    "trash_days": 0,
    "rules": [],
    "sha256": False,
    "bytes_max": None,
    "artifacts_max": None,
}

# What is drawn from

CONTENTS = [b"", b"small", b"s" * 999, b"L" * 1500, b"M" * 3000, bytes(range(256)) * 300]
FOLDERS = ["t", "u", "t/w", "t/v", "u/w", "t/w/d"]
NAMES = [f"{folder}/{name}" for folder in FOLDERS[2:] for name in ("a", "b.log", "d")]
TARGETS = [*FOLDERS, "x", "t/n", "u/n", "u/w/d", "t/w/d/e", "x/n/d"]
CASES = ["smith", "audit"]
METADATA = [
    None,
    None,
    {},
    {"kind": "log"},
    {"kind": 1, "by": "ada"},
    *({"retention_override": text} for text in ("2d", "36h", "1 weeks", "2_months", "1year")),
    {"retention_override": "never", "kind": "log"},
    {"retention_override": "2024-02-29"},
    {"retention_override": "2023-12-24T18:00:00+01:00"},
]
AGE_SETS = [
    {},
    {"hot_days": 1},
    {"hot_days": 1, "warm_days": 2, "cold_days": 4},
    {"hot_days": 0.5, "warm_days": 0.5, "cold_days": 10},
    {"hot_days": 0, "warm_days": 0, "cold_days": 0},
    {"hot_days": 50},
    {"warm_days": 3},
    {"cold_days": 35},
    {"cold_days": "never"},
    dict.fromkeys(AGES, "never"),
]
MATCHES = [
    {},
    {"prefix": "t/"},
    {"prefix": "t/w"},
    {"prefix": "u/w/d"},
    {"prefix": "x"},
    {"glob": "**/*.log"},
    {"glob": "t/*/a"},
    {"glob": "*/w/**"},
    {"glob": "**/[!b]*"},
    {"glob": "?/[v-w]/d/*", "prefix": "t"},
    {"tags": {"kind": "log"}},
    {"tags": {"kind": 1}, "size_max": 1000},
    {"size_min": "1KiB"},
    {"size_min": 5, "size_max": 5},
    {"size_min": 6, "size_max": 5},
]
MISFITS = (Conflict, InvalidName, InvalidValue, NotFound)
PERIODS = [60, 7200, 86400, 3 * 86400, 8 * 86400, 40 * 86400, 400 * 86400, -7200]


@dataclass(frozen=True)
class Kept:
    """What the model knows of an artifact."""

    id: int
    content: bytes
    tier: int
    written: int
    aged: int
    accessed: int
    metadata: dict[str, Any]
    holds: frozenset[str] = frozenset()
    back: tuple[int, int] | None = None
    spared: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Gone:
    """What the model knows of an artifact in the trash."""

    name: str
    kept: Kept
    trashed: int
    until: int


# Rules, as docs/artifacts.md has them


def globs(pattern, text):
    """Say whether a pattern is about a text, by trying everything."""
    if not pattern:
        return not text
    if pattern.startswith("**/"):
        ends = [0, *(at + 1 for at, sign in enumerate(text) if sign == "/")]
        return any(globs(pattern[3:], text[end:]) for end in ends)
    if pattern.startswith("**"):
        return any(globs(pattern[2:], text[end:]) for end in range(len(text) + 1))
    if pattern[0] == "*":
        reach = len(text.partition("/")[0])
        return any(globs(pattern[1:], text[end:]) for end in range(reach + 1))
    if pattern[0] == "[":
        inside, _, rest = pattern[1:].partition("]")
        return bool(text) and text[0] != "/" and among(text[0], inside) and globs(rest, text[1:])
    fits = bool(text) and (pattern[0] == text[0] or (pattern[0] == "?" and text[0] != "/"))
    return fits and globs(pattern[1:], text[1:])


def among(sign, inside):
    if inside.startswith("!"):
        return not among(sign, inside[1:])
    if len(inside) == 3 and inside[1] == "-":
        return inside[0] <= sign <= inside[2]
    return sign in inside


def size_of(size):
    return int(size[:-3]) * 1024 if isinstance(size, str) else size


def matches(rule, path, kept):
    size = len(kept.content)
    return (
        path.startswith(rule.get("prefix", ""))
        and ("glob" not in rule or globs(rule["glob"], path))
        and all(kept.metadata.get(key) == tag for key, tag in rule.get("tags", {}).items())
        and size_of(rule.get("size_min", 0)) <= size <= rule.get("size_max", size)
    )


def days_of(age):
    return float("inf") if age == "never" else age


def increase(given):
    ages = [days_of(given[name]) for name in AGES if given.get(name) is not None]
    return ages == sorted(ages)


def later(from_ns, days):
    return NEVER if days == float("inf") else from_ns + round(days * DAY)


def purged_at(text, written):
    """Say when a ``retention_override`` lets an artifact go."""
    if text == "never":
        return NEVER
    if "-" in text:
        at = datetime.fromisoformat(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return round(at.timestamp()) * SECOND
    if text == "36h":
        return written + 36 * HOUR
    if text == "2d":
        return written + 2 * DAY
    if text == "1 weeks":
        return written + 7 * DAY
    at = datetime.fromtimestamp(written // SECOND, UTC)
    months = at.year * 12 + at.month - 1 + {"2_months": 2, "1year": 12}[text]
    day = at.day
    while True:
        try:
            there = at.replace(year=months // 12, month=months % 12 + 1, day=day)
        except ValueError:
            day -= 1  # no such day in that month
        else:
            return round(there.timestamp()) * SECOND


class Rules:
    """The rules in force: what was configured, before the defaults."""

    def __init__(self):
        self.layer = {"tenants": {}}

    def after(self, options):
        """Give the layer after a change; None when what it would make is refused."""
        common = {**self.layer, **{k: v for k, v in options.items() if k != "tenants"}}
        tenants = dict(self.layer["tenants"])
        for tenant, given in (options.get("tenants") or {}).items():
            whole = {} if given is None else {**tenants.get(tenant, {}), **given}
            tenants[tenant] = {k: v for k, v in whole.items() if v is not None}
            if not tenants[tenant]:  # all that was changed is taken back
                del tenants[tenant]
        if "tenants" in options and options["tenants"] is None:
            tenants = {}
        layer = {k: v for k, v in common.items() if v is not None}
        layer["tenants"] = tenants
        changed = Rules()
        changed.layer = layer
        sections = [changed.section(None), *map(changed.section, tenants)]
        rules = [rule for section in sections for rule in section["rules"]]
        sound = all(map(increase, [*sections, *rules])) and all(
            size_of(rule.get("size_min", 0)) <= rule.get("size_max", 1 << 40) for rule in rules
        )
        return layer if sound else None

    def section(self, tenant):
        own = self.layer["tenants"].get(tenant, {})
        rules = [*own.get("rules", []), *self.layer.get("rules", [])]
        return {**DEFAULTS, **self.layer, **own, "rules": rules}

    def rule(self, path, kept):
        rules = self.section(path.partition("/")[0])["rules"]
        return next((rule for rule in rules if matches(rule, path, kept)), None)

    def verdict(self, path, kept, newest):
        """Give (name of the rule, steps, whether it may be purged at all).

        ``newest`` gives the artifacts of a workflow that match a rule, the last written first.
        """
        tenant = path.partition("/")[0]
        section, rule = self.section(tenant), self.rule(path, kept)
        ages = [days_of(section[name]) for name in AGES]
        for at, name in enumerate(AGES):
            if rule is not None and rule.get(name) is not None:
                set_to = days_of(rule[name])  # what is inherited before it, or after it, gives way
                ages[:at] = [min(age, set_to) for age in ages[:at]]
                ages[at:] = [set_to, *(max(age, set_to) for age in ages[at + 1 :])]
        start = kept.aged
        if rule is not None and rule.get("basis") == "access":
            start = max(start, kept.accessed)
        purge = later(start, ages[2])
        if rule is not None:
            name = f"rule {rule['name']}"
        else:
            name = f"tenant {tenant}" if tenant in self.layer["tenants"] else "default"
        override = kept.metadata.get("retention_override")
        if override is not None:
            purge, name = purged_at(override, kept.written), f"retention_override = {override}"
        purge = max(purge, later(kept.written, section["floor_days"]), kept.spared)
        tier, back = kept.tier, []
        if kept.back is not None and kept.back[0] > tier:
            tier, start_again = kept.back
            name, back = f"restored for a time ({name})", [(TIERS[tier], start_again)]
            purge = max(purge, start_again)
        steps = [(TIERS[at + 1], later(start, ages[at])) for at in range(tier, 2)]
        steps = [(to, max(at, back[0][1]) if back else at) for to, at in steps]
        steps = [*back, *(step for step in steps if step[1] < purge)]
        if purge < NEVER:
            steps.append(("purge", purge))
        count = 0 if rule is None else rule.get("keep_newest", 0)
        stays = bool(kept.holds) or (count and path in newest(path, rule)[:count])
        return name, steps, not stays


def action_of(steps, purgeable, now):
    """Give what is due now of some steps: the last that may be taken."""
    due = [name for name, at in steps if at <= now and (purgeable or name != "purge")]
    return due[-1] if due else None


class Model:
    """Artifacts, trash and rules in plain Python."""

    def __init__(self, clock):
        self.clock = clock
        self.rules = Rules()
        self.files: dict[str, Kept] = {}
        self.trash: list[Gone] = []
        self.ids = 0

    # Looking

    def below(self, folder):
        return [name for name in self.files if name.startswith(f"{folder}/")]

    def in_the_way(self, name):
        """Say whether a folder is where an artifact would be, or an artifact above it."""
        parts = name.split("/")
        above = ["/".join(parts[:end]) for end in range(1, len(parts))]
        return bool(self.below(name)) or any(each in self.files for each in above)

    def ordered(self, names=None):
        return sorted(self.files if names is None else names, key=lambda name: name.split("/"))

    def newest(self, path, rule=None):
        workflow = "/".join(path.split("/")[:2])
        found = sorted(
            (
                (self.files[name].written, self.files[name].id, name)
                for name in self.below(workflow)
            ),
            reverse=True,
        )
        return [n for *_, n in found if rule is None or matches(rule, n, self.files[n])]

    def verdict(self, name):
        return self.rules.verdict(name, self.files[name], self.newest)

    def due(self):
        """Give what is due: name to action."""
        verdicts = {name: self.verdict(name) for name in self.files}
        actions = {n: action_of(v[1], v[2], self.clock.at_ns) for n, v in verdicts.items()}
        return {name: action for name, action in actions.items() if action is not None}

    def over(self, tenant):
        """Say whether a tenant has more than it may."""
        section = self.rules.section(tenant)
        names = self.below(tenant)
        size = sum(len(self.files[name].content) for name in names)
        limits = ((section["artifacts_max"], len(names)), (section["bytes_max"], size))
        return any(limit is not None and have > limit for limit, have in limits)

    @contextmanager
    def tried(self):
        """Let what is done inside be undone after a refusal."""
        files, trash, ids = dict(self.files), list(self.trash), self.ids
        try:
            yield
        except Exception:
            self.files, self.trash, self.ids = files, trash, ids
            raise

    # Changing: what is refused raises what the store has to raise

    def put(self, name, content, metadata, tier):
        old = self.files.get(name)
        if self.in_the_way(name):
            raise Conflict(name, "")
        if old is not None and old.holds:
            raise Held("", name, "")
        now, tenant = self.clock.at_ns, name.partition("/")[0]
        asks = self.rules.section(tenant)["sha256"]
        sha256 = hashlib.sha256(content).hexdigest() if asks else ""
        if old is None:
            self.ids += 1
            self.files[name] = Kept(self.ids, content, tier, now, now, now, metadata or {})
        else:
            kept = old.metadata if metadata is None else metadata
            self.files[name] = Kept(old.id, content, tier, now, now, old.accessed, kept)
        self.files[name] = replace(self.files[name], sha256=sha256)
        if (old is None or len(content) > len(old.content)) and self.over(tenant):
            raise QuotaExceeded("", "", "")

    def put_many(self, items, metadata):
        counts = [0, 0, 0]
        for name, content in items:
            old = self.files.get(name)
            same = old is not None and old.content == content
            if same and (metadata is None or metadata == old.metadata):
                counts[2] += 1
            else:
                self.put(name, content, metadata, 0)
                counts[0 if old is None else 1] += 1
        return (len(items), *counts)

    def discard(self, name):
        kept = self.files.pop(name)
        days = self.rules.section(name.partition("/")[0])["trash_days"]
        now = self.clock.at_ns
        if days:
            self.trash.append(Gone(name, kept, now, now + round(days * DAY)))

    def delete(self, name, *, trash):
        if name not in self.files:
            return False
        if self.files[name].holds:
            raise Held("", name, "")
        if trash:
            self.discard(name)
        else:
            del self.files[name]
        return True

    def undelete(self, name):
        found = [gone for gone in self.trash if gone.name == name]
        if not found:
            raise NotFound("", name)
        if name in self.files or self.below(name):
            raise Exists("", name)
        if self.in_the_way(name):
            raise Conflict(name, "")
        gone = max(found, key=lambda each: (each.trashed, each.until))
        self.trash.remove(gone)
        now = self.clock.at_ns
        self.files[name] = replace(gone.kept, aged=now, spared=now + 7 * DAY)
        if self.over(name.partition("/")[0]):
            raise QuotaExceeded("", "", "")

    def empty_trash(self, prefix):
        left = [gone for gone in self.trash if not gone.name.startswith(prefix)]
        count, self.trash = len(self.trash) - len(left), left
        return count

    def rename(self, old, new, *, replacing):
        if old in self.files:
            self._rename_file(old, new, replacing=replacing)
        else:
            self._rename_folder(old, new)

    def _rename_file(self, old, new, *, replacing):
        if new.count("/") < 2:
            raise InvalidName("", new, "")
        if new == old:
            return
        kept, there = self.files[old], self.files.get(new)
        if new.startswith(f"{old}/") or self.in_the_way(new):
            raise Conflict(new, "")
        if kept.holds:
            raise Held("", old, "")
        if there is not None and not replacing:
            raise Exists("", new)
        if there is not None and there.holds:
            raise Held("", new, "")
        self.files[new] = self.files.pop(old)
        if new.partition("/")[0] != old.partition("/")[0] and self.over(new.partition("/")[0]):
            raise QuotaExceeded("", "", "")

    def _rename_folder(self, old, new):
        names = self.below(old)
        if not names:
            raise NotFound("", old)
        if new == old:
            return
        if new.startswith(f"{old}/"):
            raise InvalidValue("", "")
        if new in self.files or self.in_the_way(new):
            raise Conflict(new, "")
        moved = {new + name[len(old) :]: self.files[name] for name in names}
        if any(name.count("/") < 2 for name in moved):
            raise InvalidName("", new, "")
        if any(kept.holds for kept in moved.values()):
            raise Held("", old, "")
        for name in names:
            del self.files[name]
        self.files.update(moved)
        tenant = new.partition("/")[0]
        if tenant != old.partition("/")[0] and self.over(tenant):
            raise QuotaExceeded("", "", "")

    def flip(self, name, tier, back=None):
        kept = self.files[name]
        aged = self.clock.at_ns if tier < kept.tier else kept.aged
        self.files[name] = replace(kept, tier=tier, aged=aged, back=back)

    def restore(self, name, tier, seconds):
        kept = self.files[name]
        if tier > kept.tier:
            raise InvalidValue("tier", "")
        back = None
        if seconds is not None:
            from_tier = kept.tier
            if tier == kept.tier and kept.back is not None:
                from_tier = kept.back[0]  # for longer, or shorter, than it was
            if from_tier > tier:
                back = (from_tier, self.clock.at_ns + seconds * SECOND)
        self.flip(name, tier, back)

    def run(self):
        """Do what is due; give how many went to warm, to cold, were purged, left the trash."""
        actions = self.due()
        for name, action in actions.items():
            if action == "purge":
                self.discard(name)
            else:
                self.flip(name, TIERS.index(action))
        left = [gone for gone in self.trash if gone.until > self.clock.at_ns]
        emptied, self.trash = len(self.trash) - len(left), left
        did = list(actions.values())
        return did.count("warm"), did.count("cold"), did.count("purge"), emptied

    def totals(self, folder):
        found = [self.files[name] for name in (self.below(folder) if folder else self.files)]
        tiers = [[kept for kept in found if kept.tier == tier] for tier in range(3)]
        sizes = [(len(group), sum(len(kept.content) for kept in group)) for group in tiers]
        return (*sizes, sum(1 for kept in found if kept.holds))


class Twin:
    """A store and its model, to which the same is done."""

    def __init__(self, folder, door="lmdb", *, at_ns=START_NS):
        self.folder = folder
        self.door = door
        self.clock = ManualClock(at_ns)
        self.model = Model(self.clock)
        self.open()

    def open(self):
        self.stack = ExitStack()
        self.store = self.real = self.stack.enter_context(
            open_store(
                self.folder / "store",
                clock=self.clock,
                settings=StoreSettings(inline_bytes_max=1024),
                engine="memory" if self.door == "memory" else "lmdb",
            )
        )
        if self.door == "client":
            self.stack.enter_context(serving(self.real, self.folder / "socket"))
            self.store = self.stack.enter_context(kvstate.connect(self.folder / "socket"))
        self.artifacts, self.lifecycle = self.store.artifacts, self.store.lifecycle

    def close(self):
        self.stack.close()

    def both(self, of_model, of_store):
        """Do it to the model, then to the store: the same result, or the same refusal."""
        self.clock.advance(0.001)
        try:
            with self.model.tried():
                expected = of_model()
        except (Held, QuotaExceeded) as error:
            with pytest.raises(type(error)):
                of_store()
            return None
        except MISFITS:  # several may apply: which of them is said is not the model's business
            with pytest.raises((*MISFITS, Held)):
                of_store()
            return None
        found = of_store()
        assert expected is None or found == expected, (found, expected)
        return found

    # Acts

    def put(self, name, content, metadata=None, tier=0):
        self.both(
            lambda: self.model.put(name, content, metadata, tier),
            lambda: self.artifacts.put(name, content, metadata=metadata, tier=TIERS[tier]),
        )

    def put_many(self, items, metadata=None):
        self.both(
            lambda: self.model.put_many(items, metadata),
            lambda: self.artifacts.put_many(items, metadata=metadata),
        )

    def delete(self, name, *, trash=True):
        self.both(
            lambda: self.model.delete(name, trash=trash),
            lambda: self.artifacts.delete(name, trash=trash),
        )

    def undelete(self, name):
        self.both(lambda: self.model.undelete(name), lambda: self.artifacts.undelete(name))

    def empty_trash(self, prefix):
        self.both(
            lambda: self.model.empty_trash(prefix), lambda: self.artifacts.empty_trash(prefix)
        )

    def rename(self, old, new, *, replacing=False):
        self.both(
            lambda: self.model.rename(old, new, replacing=replacing),
            lambda: self.artifacts.rename(old, new, replace=replacing),
        )

    def _present(self, name):
        if name not in self.model.files:
            raise (Conflict if self.model.below(name) else NotFound)("", name)
        return self.model.files[name]

    def _set(self, name, **changes):
        self.model.files[name] = replace(self._present(name), **changes)

    def hold(self, name, case):
        self.both(
            lambda: self._set(name, holds=self._present(name).holds | {case}),
            lambda: self.artifacts.hold(name, case),
        )

    def release(self, name, case):
        def of_model():
            if case not in self._present(name).holds:
                raise NotFound("hold", case)
            self._set(name, holds=self._present(name).holds - {case})

        self.both(of_model, lambda: self.artifacts.release(name, case))

    def update(self, name, metadata):
        self.both(
            lambda: self._set(name, metadata=metadata),
            lambda: self.artifacts.update(name, metadata),
        )

    def move(self, name, tier):
        def of_model():
            self._present(name)
            self.model.flip(name, tier)

        self.both(of_model, lambda: self.artifacts.move(name, TIERS[tier]))

    def restore(self, name, tier, seconds):
        def of_model():
            self._present(name)
            self.model.restore(name, tier, seconds)

        options = {} if seconds is None else {"for_seconds": seconds}
        self.both(of_model, lambda: self.artifacts.restore(name, TIERS[tier], **options))

    def read(self, name):
        def of_model():
            kept = self._present(name)
            if self.clock.at_ns - kept.accessed >= DAY:
                self._set(name, accessed=self.clock.at_ns)
            return kept.content

        self.both(of_model, lambda: self.artifacts.get(name))
        self.real.reads.flush()

    def configure(self, options):
        def of_model():
            layer = self.model.rules.after(options)
            if layer is None:
                raise InvalidValue("", "")
            self.model.rules.layer = layer

        self.both(of_model, lambda: self.lifecycle.configure(**options))

    def advance(self, seconds):
        self.clock.advance(seconds)

    def run(self):
        """Run what is due, after an hour in which whatever the newest are is noticed."""
        self.clock.advance(3601)
        actions = self.model.due()
        expected = sorted(
            (self.model.verdict(name)[1][0][1], name, TIERS[self.model.files[name].tier], action)
            for name, action in actions.items()
        )
        plan = list(self.lifecycle.plan())
        assert sorted((m.due_at_ns, m.name, m.source, m.target) for m in plan) == expected
        assert [(m.due_at_ns, m.id) for m in plan] == sorted((m.due_at_ns, m.id) for m in plan)
        paged, after = [], None
        while page := list(self.lifecycle.plan(2, after=after)):
            paged += page
            after = (page[-1].due_at_ns, page[-1].id)
        assert paged == plan
        dry = self.lifecycle.run(dry_run=True)
        outcome = self.lifecycle.run()
        done = (outcome.promoted_to_warm, outcome.promoted_to_cold, outcome.purged)
        assert (dry.promoted_to_warm, dry.promoted_to_cold, dry.purged) == done, (dry, outcome)
        assert (*done, outcome.emptied) == self.model.run()
        assert (outcome.errors, outcome.refused) == (0, 0)

    # Comparing

    def compare(self):
        """See that all there is, is what the model has."""
        files, now = self.model.files, self.clock.at_ns
        found = list(self.artifacts.list())
        assert [each.name for each in found] == self.model.ordered()
        for each in found:
            kept = files[each.name]
            steps = self.model.verdict(each.name)[1]
            assert (each.tier, each.size) == (TIERS[kept.tier], len(kept.content)), each
            assert (each.written_at_ns, each.accessed_at_ns) == (kept.written, kept.accessed), each
            assert (each.metadata, set(each.holds)) == (kept.metadata, kept.holds), each
            assert each.sha256 == kept.sha256, each
            assert each.due_at_ns == (steps[0][1] if steps else 0), each
            assert each.returns_at_ns == (kept.back[1] if kept.back else 0), each
        trash = [(gone.name, gone.at) for gone in map(_trashed, self.artifacts.trash())]
        ordered = sorted(self.model.trash, key=lambda gone: (gone.until, gone.kept.id))
        assert trash == [(gone.name, (gone.trashed, gone.until)) for gone in ordered]
        assert _totals(self.artifacts.usage()) == self.model.totals("")
        tenants = sorted({name.split("/")[0] for name in files})
        assert [(name, _totals(t)) for name, t in self.artifacts.usages()] == [
            (name, self.model.totals(name)) for name in tenants
        ]
        for tenant in tenants:
            workflows = sorted({name.split("/")[1] for name in self.model.below(tenant)})
            assert [(name, _totals(t)) for name, t in self.artifacts.usages(tenant)] == [
                (name, self.model.totals(f"{tenant}/{name}")) for name in workflows
            ]
        assert now == self.clock.at_ns

    def compare_explanation(self, name):
        rule_name, steps, purgeable = self.model.verdict(name)
        said = self.lifecycle.explain(name)
        assert (said.rule, said.tier) == (rule_name, TIERS[self.model.files[name].tier])
        assert list(said.steps) == steps
        assert said.action == action_of(steps, purgeable, self.clock.at_ns)
        assert all(any(case in why for why in said.why) for case in self.model.files[name].holds)
        assert said.why

    def compare_contents(self):
        for name, kept in self.model.files.items():
            with self.real.artifacts.open(name) as reader:
                self.real.reads._noted.clear()  # a comparison is no access
                assert reader.read() == kept.content


@dataclass(frozen=True)
class _Trashed:
    name: str
    at: tuple[int, int]


def _trashed(each):
    return _Trashed(each.name, (each.trashed_at_ns, each.gone_at_ns))


def _totals(totals):
    return (*map(tuple, totals.tiers), totals.held)


# Random steps

names = st.sampled_from(NAMES)
contents = st.integers(0, len(CONTENTS) - 1)
tiers = st.integers(0, 2)
rules_drawn = st.lists(
    st.builds(
        lambda name, match, ages, more: {"name": name, **match, **ages, **more},
        st.sampled_from(["one", "two"]),
        st.sampled_from(MATCHES),
        st.sampled_from(AGE_SETS),
        st.sampled_from([{}, {}, {"basis": "access"}, {"keep_newest": 1}, {"keep_newest": 2}]),
    ),
    max_size=3,
)
days = st.sampled_from([None, 0, 0.5, 3, 45])
sections = {
    "floor_days": days,
    "trash_days": days,
    "rules": st.one_of(st.none(), rules_drawn, rules_drawn),
    "sha256": st.booleans(),
}
quotas = {
    "bytes_max": st.sampled_from([None, 0, 1000, 2500, "4KiB", 80_000]),
    "artifacts_max": st.sampled_from([None, 1, 3]),
}
aged = st.one_of(st.sampled_from(AGE_SETS), st.just(dict.fromkeys(AGES)))
tenants_drawn = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from(["t", "u", "x"]),
        st.one_of(
            st.none(),
            st.builds(
                lambda ages, more: {**ages, **more},
                aged,
                st.fixed_dictionaries({}, optional={**sections, **quotas}),
            ),
        ),
        max_size=2,
    ),
)


def plain_quota(options):
    """Give what a model takes: sizes as numbers."""
    for given in (options.get("tenants") or {}).values():
        if given and isinstance(given.get("bytes_max"), str):
            given["bytes_max"] = size_of(given["bytes_max"])
    return options


class ArtifactsMachine(RuleBasedStateMachine):
    """A store of artifacts of which plain Python knows what has to be in it."""

    @initialize(door=st.sampled_from(["lmdb", "memory", "client"]))
    def make(self, door):
        self.folder = Path(tempfile.mkdtemp(prefix="kvstate-artifacts-"))
        self.twin = Twin(self.folder, door)

    def teardown(self):
        if not hasattr(self, "twin"):
            return
        try:
            self.twin.compare_contents()
            problems = self.twin.real.check(verify=True).problems
        finally:
            self.twin.close()
            shutil.rmtree(self.folder)
        assert problems == ()

    @precondition(lambda self: self.twin.door != "memory")
    @rule()
    def reopen(self):
        self.twin.close()
        self.twin.open()

    @rule(seconds=st.sampled_from(PERIODS))
    def the_clock_moves(self, seconds):
        self.twin.advance(seconds)

    @rule(name=names, content=contents, metadata=st.sampled_from(METADATA), tier=tiers)
    def put(self, name, content, metadata, tier):
        self.twin.put(name, CONTENTS[content], metadata, tier)

    @rule(
        items=st.lists(st.tuples(names, contents), max_size=6),
        metadata=st.sampled_from(METADATA[:5]),
    )
    def put_many(self, items, metadata):
        self.twin.put_many([(name, CONTENTS[each]) for name, each in items], metadata)

    @rule(name=names, trash=st.sampled_from([True, True, False]))
    def delete(self, name, trash):
        self.twin.delete(name, trash=trash)

    @rule(data=st.data())
    def undelete(self, data):
        gone = sorted({gone.name for gone in self.twin.model.trash})
        self.twin.undelete(data.draw(st.sampled_from([*gone, "t/w/a"])))

    @rule(prefix=st.sampled_from(["", "t/", "u/w/d"]))
    def empty_trash(self, prefix):
        self.twin.empty_trash(prefix)

    @rule(old=names, new=names, replacing=st.booleans())
    def rename_an_artifact(self, old, new, replacing):
        if old in self.twin.model.files:
            self.twin.rename(old, new, replacing=replacing)

    @rule(old=st.sampled_from(TARGETS), new=st.sampled_from(TARGETS))
    def rename_a_folder(self, old, new):
        self.twin.rename(old, new)

    @rule(name=names, case=st.sampled_from(CASES))
    def hold(self, name, case):
        self.twin.hold(name, case)

    @rule(name=names, case=st.sampled_from(CASES))
    def release(self, name, case):
        self.twin.release(name, case)

    @precondition(lambda self: any(kept.holds for kept in self.twin.model.files.values()))
    @rule()
    def release_all(self):
        for name, kept in list(self.twin.model.files.items()):
            for case in sorted(kept.holds):
                self.twin.release(name, case)

    @rule(name=names, metadata=st.sampled_from(METADATA[2:]))
    def update(self, name, metadata):
        self.twin.update(name, metadata)

    @rule(name=names, tier=tiers)
    def move(self, name, tier):
        self.twin.move(name, tier)

    @rule(name=names, tier=tiers, seconds=st.sampled_from([None, 3600, 10 * 86400]))
    def restore(self, name, tier, seconds):
        self.twin.restore(name, tier, seconds)

    @rule(name=names)
    def read(self, name):
        self.twin.read(name)

    @rule(options=st.fixed_dictionaries({}, optional=sections), ages=aged)
    def configure(self, options, ages):
        self.twin.configure({**options, **ages})

    @rule(tenants=tenants_drawn)
    def configure_tenants(self, tenants):
        self.twin.configure(plain_quota({"tenants": tenants}))

    @rule()
    def run(self):
        self.twin.run()

    # Looking

    @invariant()
    def all_is_as_the_model_has_it(self):
        if hasattr(self, "twin"):
            self.twin.compare()

    @rule()
    def explain_all(self):
        for name in self.twin.model.files:
            self.twin.compare_explanation(name)

    @rule(
        tier=st.sampled_from([None, *TIERS]),
        older=st.sampled_from([None, 0, 86400]),
        newer=st.sampled_from([None, 3600, 86400 * 9]),
        size_min=st.sampled_from([0, 6]),
        size_max=st.sampled_from([None, 1500]),
        metadata=st.sampled_from([None, {"kind": "log"}]),
        held=st.sampled_from([None, True, False]),
        folder=st.sampled_from(["", "t", "t/w", "t/w/d", "u/nothing"]),
        page=st.sampled_from([None, 1, 2]),
    )
    def list_some(self, tier, older, newer, size_min, size_max, metadata, held, folder, page):
        now, files = self.twin.clock.at_ns, self.twin.model.files
        options = {"tier": tier, "older_than": older, "newer_than": newer, "size_min": size_min}
        options |= {"size_max": size_max, "metadata": metadata, "held": held}

        def wanted(name):
            kept = files[name]
            return (
                tier in {None, TIERS[kept.tier]}
                and (older is None or now - kept.written > older * SECOND)
                and (newer is None or now - kept.written <= newer * SECOND)
                and size_min <= len(kept.content) <= (size_max or 10**9)
                and (metadata is None or metadata.items() <= kept.metadata.items())
                and held in {None, bool(kept.holds)}
            )

        below = [n for n in files if not folder or n == folder or n.startswith(f"{folder}/")]
        expected = [name for name in self.twin.model.ordered(below) if wanted(name)]
        assert self._paged(folder, page, **options) == expected
        if folder.count("/") == 1:
            newest = [name for name in self.twin.model.newest(f"{folder}/") if wanted(name)]
            assert self._paged(folder, page, newest=True, **options) == newest

    def _paged(self, folder, page, **options):
        listed = self.twin.artifacts.list
        if page is None:
            return [each.name for each in listed(folder, **options)]
        found, after = [], None
        while some := [each.name for each in listed(folder, limit=page, after=after, **options)]:
            found += some
            after = some[-1]
        return found


TestArtifacts = ArtifactsMachine.TestCase
# KVSTATE_EXPLORE=1 takes other steps in each run, and many more of them.
EXPLORE = os.environ.get("KVSTATE_EXPLORE") == "1"
TestArtifacts.settings = settings(
    max_examples=1000 if EXPLORE else 80,
    stateful_step_count=50,
    deadline=None,
    derandomize=not EXPLORE,
    report_multiple_bugs=False,
)


# Long walks, and a process that is killed on one


def random_rules(random):
    """Give rules of which each may stand, in the shape of the settings."""
    return [
        {
            "name": f"number {number}",
            **random.choice(MATCHES[:-1]),
            **random.choice(AGE_SETS),
            **random.choice([{}, {"basis": "access"}, {"keep_newest": 1}, {"keep_newest": 2}]),
        }
        for number in range(random.randrange(4))
    ]


def random_tenant(random):
    """Give a tenant's section, or None to take it back."""
    return random.choice(
        [
            None,
            {**random.choice(AGE_SETS), "rules": random_rules(random)},
            {"trash_days": random.choice([None, 0, 3]), "floor_days": random.choice([None, 5])},
            {"sha256": True, "bytes_max": random.choice([None, 2500, 80_000])},
            {"artifacts_max": random.choice([None, 2, 4])},
        ]
    )


def test_globs_match_what_trying_everything_matches():
    source = random.Random(None if EXPLORE else 1)
    signs = ["a", "b", "/", "/", "*", "*", "**", "**/", "?", "[ab]", "[!a]", "[!-a]"]
    matched = 0
    for _ in range(200_000 if EXPLORE else 20_000):
        glob = "".join(source.choices(signs, k=source.randrange(1, 8)))
        text = "".join(source.choices("ab/", k=source.randrange(8)))
        try:
            found = Rule(name="it", glob=glob)
            Policy.of({"rules": [{"glob": glob}]})
        except InvalidValue:
            continue  # more of '**' than there may be
        if "***" not in glob:
            matched += globs(glob, text)
            assert found.matches(text, 0, {}) is globs(glob, text), (glob, text)
    assert matched > 500


def random_step(twin, random):  # noqa: C901, PLR0912  (a branch for each kind of step)
    """Do something to a twin, chosen by a generator of random numbers alone."""
    name, other = random.choice(NAMES), random.choice(NAMES)
    files = sorted(twin.model.files)
    there = random.choice(files or [name])
    match random.randrange(24):
        case 0 | 1 | 2 | 3 | 4:
            content, metadata = random.choice(CONTENTS), random.choice(METADATA)
            twin.put(name, content, metadata, random.randrange(3))
        case 5 | 6:
            items = [(random.choice(NAMES), random.choice(CONTENTS)) for _ in range(5)]
            twin.put_many(items, random.choice(METADATA))
        case 7:
            twin.delete(there, trash=random.random() < 0.8)
        case 8:
            twin.undelete(random.choice([name, *(gone.name for gone in twin.model.trash)]))
        case 9:
            twin.move(there, random.randrange(3))
        case 10 if there in twin.model.files:
            twin.rename(there, other, replacing=random.random() < 0.7)
        case 11 | 12:
            twin.rename(random.choice(TARGETS), random.choice(TARGETS))
        case 13:
            twin.restore(there, random.randrange(3), random.choice([None, 3600, 864000]))
        case 14 if random.random() < 0.5:
            twin.hold(there, random.choice(CASES))
        case 15 | 16 if held := [each for each in files if twin.model.files[each].holds]:
            each = random.choice(held)
            twin.release(each, min(twin.model.files[each].holds))
        case 17:
            twin.update(there, random.choice(METADATA[2:]))
        case 18:
            twin.read(there)
        case 19:
            ages = random.choice([{}, AGE_SETS[2], AGE_SETS[3], dict.fromkeys(AGES)])
            more = {"trash_days": random.choice([0, 3, 45]), "rules": random_rules(random)}
            twin.configure({**ages, **more})
        case 20:
            twin.configure({"tenants": {random.choice("tux"): random_tenant(random)}})
        case 21 if random.random() < 0.2:
            twin.empty_trash(random.choice(["", "t/"]))
        case 22 | 23:
            twin.advance(random.choice([3600, 86400, 3 * 86400, 9 * 86400]))
            twin.run()


@pytest.mark.parametrize("number", range(200 if EXPLORE else 12))
def test_a_long_walk_agrees_with_the_model(tmp_path, number):
    source = random.Random(None if EXPLORE else number)
    twin = Twin(tmp_path, "memory")
    with twin.stack:
        for _ in range(250):
            random_step(twin, source)
            twin.compare()
            for name in twin.model.files:
                twin.compare_explanation(name)
        twin.compare_contents()
        assert twin.real.check(verify=True).problems == ()


LOAD = """
import random, sys
from pathlib import Path
from tests.model.test_artifacts_against_a_model import Twin, random_step
twin, source = Twin(Path(sys.argv[1])), random.Random(int(sys.argv[2]))
n = 0
while True:
    random_step(twin, source)
    n += 1
    print(n, flush=True)
"""


@pytest.mark.parametrize(("seed", "acknowledged"), [(1, 7), (2, 30), (3, 61), (4, 99), (5, 120)])
def test_a_process_that_is_killed_leaves_a_state_of_the_model(tmp_path, seed, acknowledged):
    killed, replayed = tmp_path / "killed", tmp_path / "replayed"
    killed.mkdir()
    load = subprocess.Popen(
        [sys.executable, "-c", LOAD, killed, str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(map(str, ROOTS))},
    )
    try:
        done = 0
        for line in load.stdout:
            done = int(line)
            if done >= acknowledged:
                break
    finally:
        load.kill()
        rest = load.stdout.read().split()
        load.stdout.close()
        load.wait(30)
    done = max([done, *map(int, rest)])
    assert done >= acknowledged

    replay, source = Twin(replayed, "memory"), random.Random(seed)
    for _ in range(done):
        random_step(replay, source)
    before = _facts(replay.model)
    random_step(replay, source)
    after = _facts(replay.model)

    replay.close()
    left = Twin(killed, at_ns=replay.clock.at_ns)
    with left.stack:
        assert left.real.check(verify=True).problems == ()
        if (found := _found(left)) not in (before, after):
            # A run is many commits: what is left of it is done by the next.
            left.lifecycle.run()
            found = _found(left)
        assert found in (before, after)
        left.model.files = {k: v for k, v in replay.model.files.items() if found == after}
        left.compare_contents()
        assert left.real.check(verify=True).problems == ()


def _facts(model):
    return (
        [
            (n, TIERS[k.tier], len(k.content), k.written, k.metadata)
            for n, k in ((n, model.files[n]) for n in model.ordered())
        ],
        sorted((gone.name, gone.until) for gone in model.trash),
        model.totals(""),
    )


def _found(twin):
    listed = twin.artifacts.list()
    return (
        [(a.name, a.tier, a.size, a.written_at_ns, a.metadata) for a in listed],
        sorted((gone.name, gone.gone_at_ns) for gone in twin.artifacts.trash()),
        _totals(twin.artifacts.usage()),
    )
