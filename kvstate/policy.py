"""What is to become of an artifact, and when: pure functions of its facts, the rules and a time.

A `Policy` is made of plain data, in the shape of the settings file's ``[lifecycle]`` and
``[tenants]``. `Policy.verdict` says which rule decides over an artifact, what is due when, and what
is in the way. Nothing in here reads a clock, a file or a record.
"""

from __future__ import annotations

import math
import re
from calendar import monthrange
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvstate.clock import SECOND
from kvstate.durations import parse_duration
from kvstate.errors import InvalidValue
from kvstate.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "DAY",
    "OVERRIDE",
    "PURGE",
    "TIERS",
    "Facts",
    "Policy",
    "Rule",
    "Section",
    "Step",
    "Verdict",
    "fitted",
    "override_ns",
]

TIERS: Final = ("hot", "warm", "cold")
PURGE: Final = "purge"
DAY: Final = 86400 * SECOND
OVERRIDE: Final = "retention_override"
"""The metadata that says when its artifact is purged."""
_DAYS_MAX: Final = 36500
_KEEP_MAX: Final = 10_000
_NEVER_NS: Final = 2**63 - 1
_AGES: Final = ("hot_days", "warm_days", "cold_days")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SIGNS: Final = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^]]+\]|.", re.DOTALL)
_SPANS: Final = ("**", "**/")
_SPANS_MAX: Final = 3
"""So many ``**`` may be in a pattern: how long a match takes at worst grows with each."""
_UNITS: Final = {"day": 1, "week": 7, "month": 0, "year": 0}


class Facts(NamedTuple):
    """What a rule may look at. Times are nanoseconds since 1970 UTC.

    ``back`` is the tier, and the moment, that a restored artifact goes back to by itself;
    ``failure`` the tier that it could not be moved to, and when to try again; before ``spared_ns``
    it is not purged, since somebody took it out of the trash.
    """

    path: str
    tier: int
    size: int
    metadata: Mapping[str, Any]
    written_ns: int
    aged_from_ns: int
    accessed_ns: int
    holds: Mapping[str, Any]
    back: tuple[int, int] | None
    failure: tuple[int, int] | None
    spared_ns: int = 0


class Step(NamedTuple):
    """One thing that will be due: ``action`` is a tier, or purge; ``why`` says it to people."""

    action: str
    due_ns: int
    why: str = ""


class Verdict(NamedTuple):
    """What is to become of an artifact.

    ``rule`` decides; ``steps`` are due one after the other as long as nothing changes; ``action``
    is what is due now (None: nothing), and ``blocks`` says what is in its way. ``look_ns`` is when
    to ask again (None: not before something changes).
    """

    rule: str
    steps: tuple[Step, ...]
    action: str | None
    blocks: tuple[str, ...]
    look_ns: int | None
    keep_newest: int

    @property
    def due_ns(self) -> int | None:
        """When the next step is due."""
        return self.steps[0].due_ns if self.steps else None

    @property
    def why(self) -> str:
        """Give the reason of what is due, with the rule unless it is the default."""
        why = next((step.why for step in self.steps if step.action == self.action), "")
        return why if self.rule == "default" else ": ".join(filter(None, (self.rule, why)))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule: what it matches, and the ages that it sets (None: inherited). Days, bytes."""

    name: str
    prefix: str = ""
    glob: str = ""
    tags: Mapping[str, Any] = field(default_factory=dict)
    size_min: int = 0
    size_max: int | None = None
    basis: str = "written"
    hot_days: float | None = None
    warm_days: float | None = None
    cold_days: float | None = None
    keep_newest: int = 0

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(_translated(self.glob), re.DOTALL)

    def matches(self, path: str, size: int, metadata: Mapping[str, Any]) -> bool:
        """Say whether an artifact is one of those that this rule is about."""
        return (
            path.startswith(self.prefix)
            and self.size_min <= size
            and (self.size_max is None or size <= self.size_max)
            and all(key in metadata and metadata[key] == tag for key, tag in self.tags.items())
            and (not self.glob or self._pattern.fullmatch(path) is not None)
        )


@dataclass(frozen=True, kw_only=True)
class Section:
    """What holds for one tenant, or for all: ages, floor and grace in days, rules, quotas."""

    hot_days: float = 7.0
    warm_days: float = 30.0
    cold_days: float = 90.0
    floor_days: float = 0.0
    trash_days: float = 0.0
    rules: tuple[Rule, ...] = ()
    sha256: bool = False
    bytes_max: int | None = None
    artifacts_max: int | None = None

    @cached_property
    def ages_ns(self) -> tuple[int, int, int]:
        """The three ages in nanoseconds; the largest there is for never."""
        return _ages_ns(self, None)

    @cached_property
    def floor_ns(self) -> int:
        """The floor in nanoseconds."""
        return round(self.floor_days * DAY)


_SECTION: Final = tuple(each.name for each in fields(Section))
_COMMON: Final = tuple(name for name in _SECTION if name not in {"bytes_max", "artifacts_max"})
_RULE: Final = tuple(each.name for each in fields(Rule))


@dataclass(frozen=True)
class Policy:
    """All rules."""

    common: Section = Section()
    tenants: Mapping[str, Section] = field(default_factory=dict)

    @staticmethod
    def of(settings: Mapping[str, Any], *, yielding: bool = False) -> Policy:
        """Make a policy of plain data; `InvalidValue` says which part of it is wrong.

        With ``yielding`` ages that a tenant inherits give way to its own, as they do to a rule's.
        """
        _known("lifecycle", settings, (*_COMMON, "tenants"))
        common = _section("lifecycle", settings, Section())
        named = settings.get("tenants") or {}
        if not isinstance(named, dict):
            raise InvalidValue("tenants", "it is no table of tenants")
        tenants = {}
        for tenant, given in named.items():
            where = f"tenants.{tenant}"
            if not isinstance(tenant, str) or not isinstance(given, dict):
                raise InvalidValue(where, "it is no table of settings")
            _known(where, given, _SECTION)
            inherited = replace(common, rules=())
            own = _section(where, given, inherited, yielding=yielding)
            tenants[tenant] = replace(own, rules=(*own.rules, *common.rules))
        return Policy(common, tenants)

    @cached_property
    def by_path(self) -> bool:
        """Whether an artifact's name may decide over it."""
        return bool(self.tenants or self.common.rules)

    def section(self, path: str) -> Section:
        """Give what holds for the tenant of a path."""
        if not self.tenants:
            return self.common
        return self.tenants.get(path.partition("/")[0], self.common)

    def rule(self, facts: Facts) -> Rule | None:
        """Give the first rule that matches."""
        for rule in self.section(facts.path).rules:
            if rule.matches(facts.path, facts.size, facts.metadata):
                return rule
        return None

    def look_ns(self, facts: Facts, now_ns: int) -> tuple[int, int]:
        """Give when to look at an artifact (0: not before something changes), and ``keep_newest``.

        What `verdict` says, found faster where no rule and nothing of its own decides.
        """
        section = self.section(facts.path)
        special = section.rules or facts.failure or facts.back or facts.spared_ns
        if not special and OVERRIDE not in facts.metadata:
            ages = section.ages_ns
            due_ns = facts.aged_from_ns + ages[facts.tier]
            purge_ns = max(facts.aged_from_ns + ages[2], facts.written_ns + section.floor_ns)
            due_ns = min(due_ns, purge_ns) if facts.tier < len(TIERS) - 1 else purge_ns
            if now_ns < due_ns < _NEVER_NS:
                return due_ns, 0
        verdict = self.verdict(facts, now_ns)
        return verdict.look_ns or 0, verdict.keep_newest

    def verdict(self, facts: Facts, now_ns: int) -> Verdict:
        """Say what is to become of an artifact, and what of it is due now."""
        section = self.section(facts.path)
        rule = self.rule(facts)
        ages = section.ages_ns if rule is None else _ages_ns(section, rule)
        from_ns = facts.aged_from_ns
        if rule is not None and rule.basis == "access":
            from_ns = max(from_ns, facts.accessed_ns)
        name = _name_of(self, facts.path, rule)
        spoken = "not read for" if from_ns > facts.aged_from_ns else "older than"
        whys = [f"{spoken} {age / DAY:g} days" for age in ages]
        purge_ns = _later(from_ns, ages[2])
        override = facts.metadata.get(OVERRIDE)
        if override is not None:
            purge_ns = override_ns(override, facts.written_ns)
            name, whys[2] = f"{OVERRIDE} = {override}", ""
        floor_ns = _later(facts.written_ns, round(section.floor_days * DAY))
        purge_ns = max(purge_ns, floor_ns, facts.spared_ns)
        tier, earliest_ns = facts.tier, 0
        steps = []
        if facts.back is not None and facts.back[0] > tier:
            # Nothing happens to it before its time is up; then all goes on from where it was.
            tier, earliest_ns = facts.back
            name = f"restored for a time ({name})"
            steps = [Step(TIERS[tier], earliest_ns, "its time is up")]
            purge_ns = max(purge_ns, earliest_ns)
        for colder in range(tier + 1, len(TIERS)):
            due_ns = max(_later(from_ns, ages[colder - 1]), earliest_ns)
            if due_ns < purge_ns:
                steps.append(Step(TIERS[colder], due_ns, whys[colder - 1]))
        if purge_ns < _NEVER_NS:
            steps.append(Step(PURGE, purge_ns, whys[2]))
        keep = 0 if rule is None else rule.keep_newest
        return _judged(name, tuple(steps), facts, now_ns, keep)


def _judged(rule: str, steps: tuple[Step, ...], facts: Facts, now_ns: int, keep: int) -> Verdict:
    """Find what is due now, skipping what a later step overtakes, and what is in its way."""
    if facts.failure is not None:
        # Never purged before it could be moved: then it would be lost for the want of a disk.
        tier, retry_ns = facts.failure
        steps = (Step(TIERS[tier], retry_ns, "tried again"),)
        block = "a move failed; nothing else is done before it succeeds"
        action = TIERS[tier] if retry_ns <= now_ns else None
        return Verdict(rule, steps, action, (block,), retry_ns, keep)
    due = [step for step in steps if step.due_ns <= now_ns]
    if not due:
        return Verdict(rule, steps, None, (), steps[0].due_ns if steps else None, keep)
    action = due[-1].action
    if action != PURGE:
        return Verdict(rule, steps, action, (), due[0].due_ns, keep)
    if facts.holds:
        cases = ", ".join(sorted(facts.holds))
        if facts.tier < len(TIERS) - 1 and len(due) > 1:
            return Verdict(rule, steps, due[-2].action, (f"held: {cases}",), due[0].due_ns, keep)
        return Verdict(rule, steps, None, (f"held: {cases}",), None, keep)
    return Verdict(rule, steps, PURGE, (), due[0].due_ns, keep)


def override_ns(text: Any, written_ns: int) -> int:
    """Give the moment that a ``retention_override`` names; `InvalidValue` if it names none.

    "14d", "7_years", "18 months", "never"; "2031-05-01" and other ISO dates and times (UTC).
    """
    if isinstance(text, datetime):
        return _moment(text)
    if isinstance(text, date):
        return _moment(datetime(text.year, text.month, text.day))  # noqa: DTZ001  (set below)
    if isinstance(text, str):
        if text == "never":
            return _NEVER_NS
        found = re.fullmatch(r"(\d{1,5})[_ ]?(day|week|month|year)s?", text, re.ASCII)
        if found is not None:
            return _after(written_ns, int(found[1]), found[2])
        try:
            return _moment(datetime.fromisoformat(text))
        except ValueError:
            pass
        if not text.isdigit():
            try:
                return _later(written_ns, round(parse_duration(text) * SECOND))
            except InvalidValue:
                pass
    raise InvalidValue(
        OVERRIDE, f"{text!r} has none of the forms '14d', '7_years', '2031-05-01', 'never'"
    )


def _moment(when: datetime) -> int:
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    since = when - _EPOCH
    at_ns = (since.days * 86400 + since.seconds) * SECOND + since.microseconds * 1000
    return min(max(at_ns, 1), _NEVER_NS)


def _after(written_ns: int, count: int, unit: str) -> int:
    """Give the same day so many months or years later, or so many days or weeks."""
    if _UNITS[unit]:
        return _later(written_ns, count * _UNITS[unit] * DAY)
    at = datetime.fromtimestamp(written_ns // SECOND, UTC)
    months = at.month - 1 + count * (12 if unit == "year" else 1)
    year, month = at.year + months // 12, months % 12 + 1
    if year > 9999:
        return _NEVER_NS
    day = min(at.day, monthrange(year, month)[1])
    return _moment(at.replace(year=year, month=month, day=day))


def _later(from_ns: int, by_ns: int) -> int:
    return min(from_ns + by_ns, _NEVER_NS)


def _ages_ns(section: Section, rule: Rule | None) -> tuple[int, int, int]:
    """Give the three ages: what a rule sets, and in what it leaves out, the section's."""
    inherited = [getattr(section, name) for name in _AGES]
    own = [None if rule is None else getattr(rule, name) for name in _AGES]
    hot, warm, cold = (
        _NEVER_NS if days == math.inf else round(days * DAY) for days in _completed(own, inherited)
    )
    return hot, warm, cold


def _completed(own: Sequence[float | None], inherited: Sequence[float]) -> list[float]:
    """Fill in the ages that are left out: none below one that is set before it, or above the next.

    Else an artifact would have to leave warm before it leaves hot.
    """
    ages = []
    for at, days in enumerate(own):
        low = max((age for age in own[:at] if age is not None), default=0.0)
        high = min((age for age in own[at:] if age is not None), default=math.inf)
        ages.append(min(max(inherited[at], low), high) if days is None else days)
    return ages


def _name_of(policy: Policy, path: str, rule: Rule | None) -> str:
    if rule is not None:
        return f"rule {rule.name}"
    tenant = path.partition("/")[0]
    return f"tenant {tenant}" if tenant in policy.tenants else "default"


def _translated(glob: str) -> str:
    """Give the regular expression of a pattern: ``**`` spans folders, ``*`` and ``?`` do not.

    A star takes the first place where what follows it fits, and no other (``(?>``): whatever would
    fit after a later place, the next star reaches from the first one as well. So a name that was
    made to match almost takes no longer than another.
    """
    out: list[str] = []
    star = -1
    for sign in _SIGNS.findall(glob):
        if sign == "*" or sign in _SPANS:
            if star >= 0 and sign != _SPANS[1]:
                out[star] = "(?>[^/]*?"
                out.append(")")
            star = len(out) if sign == "*" else -1
            out.append({"*": "[^/]*", _SPANS[0]: ".*", _SPANS[1]: "(?:.*/)?"}[sign])
        elif sign == "?":
            out.append("[^/]")
        elif len(sign) > 1:
            inside = "".join(c if c == "-" else re.escape(c) for c in sign[1:-1].removeprefix("!"))
            out.append(f"(?!/)[{'^' if sign[1] == '!' else ''}{inside}]")
        else:
            out.append(re.escape(sign))
    return "".join(out)


# From plain data


def _known(where: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for key in given:
        if key not in names:
            raise InvalidValue(f"{where}.{key}", f"it is none of {', '.join(names)}")


def fitted(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Give a section's base with its ages in order with those of changes that stand before it."""
    days = [
        [
            None if given.get(name) is None else _days(name, given[name], never=True)
            for name in _AGES
        ]
        for given in (base, changes)
    ]
    ages = _completed(days[1], [age or 0.0 for age in days[0]])
    return {**base, **{n: age for n, age, own in zip(_AGES, ages, days[0], strict=True) if own}}


def _section(
    where: str, given: Mapping[str, Any], base: Section, *, yielding: bool = False
) -> Section:
    values: dict[str, Any] = {}
    for key, value in given.items():
        at = f"{where}.{key}"
        if value is None or key == "tenants":
            continue
        if key == "rules":
            values[key] = _rules(at, value)
        elif key == "sha256":
            if not isinstance(value, bool):
                raise InvalidValue(at, f"{value!r} is neither true nor false")
            values[key] = value
        elif key in {"bytes_max", "artifacts_max"}:
            values[key] = _size(at, value)
        else:
            values[key] = _days(at, value, never=key in _AGES)
    if yielding:
        own = [values.get(name) for name in _AGES]
        ages = _completed(own, [getattr(base, name) for name in _AGES])
        values.update(zip(_AGES, ages, strict=True))
    section = replace(base, **values)
    ages = [getattr(section, name) for name in _AGES]
    if sorted(ages) != ages:
        shown = ", ".join(f"{age:g}" for age in ages)
        raise InvalidValue(f"{where}.{', '.join(_AGES)}", f"{shown} do not increase")
    return section


def _rules(where: str, given: Any) -> tuple[Rule, ...]:
    if not isinstance(given, list | tuple):
        raise InvalidValue(where, "it is no list of rules")
    return tuple(_rule(f"{where}[{number}]", each, number) for number, each in enumerate(given))


def _rule(where: str, given: Any, number: int) -> Rule:
    if not isinstance(given, dict):
        raise InvalidValue(where, "it is no table of settings")
    _known(where, given, _RULE)
    values: dict[str, Any] = {"name": str(number + 1)}
    for key, value in given.items():
        if value is not None:
            part: Callable[[str, Any], Any] = _RULE_PARTS.get(key, _text)
            values[key] = part(f"{where}.{key}", value)
    rule = Rule(**values)
    if rule.basis not in {"written", "access"}:
        raise InvalidValue(f"{where}.basis", f"{rule.basis!r} is neither 'written' nor 'access'")
    ages = [age for name in _AGES if (age := getattr(rule, name)) is not None]
    if sorted(ages) != ages:
        raise InvalidValue(f"{where}.{', '.join(_AGES)}", "they do not increase")
    if rule.size_max is not None and rule.size_max < rule.size_min:
        raise InvalidValue(f"{where}.size_max", "it is less than size_min")
    return rule


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValue(where, f"{value!r} is no text")
    return value


def _glob(where: str, value: Any) -> str:
    # More than two stars are two, whatever is before them or after them.
    glob = re.sub(r"\*{3,}", "**", _text(where, value))
    if glob.count("**") > _SPANS_MAX:
        raise InvalidValue(where, f"{value!r} has more than {_SPANS_MAX} '**'")
    try:
        re.compile(_translated(glob))
    except re.error as error:
        raise InvalidValue(where, f"{value!r} is no pattern: {error}") from None
    return glob


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidValue(where, "it is no table of metadata")
    return value


def _count(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _KEEP_MAX:
        raise InvalidValue(where, f"{value!r} is no number from 0 to {_KEEP_MAX}")
    return value


def _age(where: str, value: Any) -> float:
    return _days(where, value, never=True)


def _days(where: str, value: Any, *, never: bool) -> float:
    if never and value in ("never", math.inf):
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _DAYS_MAX:
        orelse = ", or 'never'" if never else ""
        raise InvalidValue(where, f"{value!r} is no number of days from 0 to {_DAYS_MAX}{orelse}")
    return float(value)


def _size(where: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            value = parse_size(value)
        except InvalidValue as error:
            raise InvalidValue(where, str(error.facts[1])) from None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2**62:
        raise InvalidValue(where, f"{value!r} is no number from 0 to 2^62")
    return value


_RULE_PARTS: Final[dict[str, Callable[[str, Any], Any]]] = {
    **dict.fromkeys(_AGES, _age),
    "glob": _glob,
    "size_min": _size,
    "size_max": _size,
    "keep_newest": _count,
    "tags": _table,
}
