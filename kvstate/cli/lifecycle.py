"""Commands of the lifecycle: plan, run, explain, summary, policy, configure."""

from __future__ import annotations

import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvstate.cli.doors import open_door
from kvstate.cli.exits import CONFLICT, DONE, FAILED
from kvstate.cli.meanings import age_or_moment
from kvstate.cli.output import complain, print_json, print_line, print_tree, printable
from kvstate.clock import SECOND, time_to_ns
from kvstate.durations import parse_duration
from kvstate.errors import InvalidConfig, InvalidValue
from kvstate.facts import facts_with_times, moment_text
from kvstate.jsonview import from_json
from kvstate.outcomes import Move, move_of
from kvstate.progress import Meter
from kvstate.toml import as_toml, spoken

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from kvstate.remote import RemoteStore
    from kvstate.store import Store

__all__ = ["configure", "explain", "plan", "policy", "run", "summary"]

_DAY_SECONDS: Final = 86400
_STEPS: Final = ("promoted_to_warm", "promoted_to_cold", "purged", "trashed")
_MOVE: Final = {"name": str, "source": str, "target": str, "due_at_ns": int, "size": int} | {
    "id": int,
    "rule": str,
    "revision": int,
}


def plan(options: Namespace) -> int:
    """List what is due; as JSON, in the form that `run --plan` takes."""
    until_ns, after = _until_ns(options.until), _after(options.after)
    with open_door(options) as store:
        for move in store.lifecycle.plan(options.limit, until_ns=until_ns, after=after):
            _print_move(options, move)
    return DONE


def _print_move(options: Namespace, move: Move) -> None:
    if options.json:
        print_json({**move._asdict(), "due_at": moment_text(move.due_at_ns)})
        return
    due = moment_text(move.due_at_ns)
    line = f"{due} {move.source} -> {move.target} {move.size} {move.name}"
    print_line(printable(line if move.rule == "default" else f"{line} ({move.rule})"))


def _until_ns(text: str | None) -> int | None:
    until = age_or_moment(text, "--until")
    if until is None:
        return None
    if isinstance(until, float):
        return time.time_ns() + round(until * SECOND)
    return time_to_ns(until, "--until")


def _after(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    due, _, node_id = text.partition(",")
    if not (due.isascii() and due.isdecimal() and node_id.isascii() and node_id.isdecimal()):
        raise InvalidValue("--after", f"{text!r} has not the form DUE_AT_NS,ID")
    return int(due), int(node_id)


def run(options: Namespace) -> int:
    """Do what is due; exit 1 when some of it failed, 4 when some of a plan was refused."""
    moves = None if options.plan is None else list(_read_plan(options.plan))
    with open_door(options) as store:
        before = store.revision()
        if options.verbose and options.dry_run:
            for move in store.lifecycle.plan() if moves is None else moves:
                _print_move(options, move)
        with Meter(None, "lifecycle", unit="") as meter:
            outcome = store.lifecycle.run(dry_run=options.dry_run, plan=moves, progress=meter.reach)
        if options.verbose and not options.dry_run:
            _print_steps(options, store, before)
    facts = facts_with_times(outcome._asdict())
    if options.json:
        print_json(facts)
    else:
        failures = facts.pop("failures")
        print_tree(facts)
        for name, why in failures:  # type: ignore[attr-defined]
            complain(f"{name}: {why}")
    if outcome.errors:
        return FAILED
    return CONFLICT if outcome.refused else DONE


def _print_steps(options: Namespace, store: Store | RemoteStore, since: int) -> None:
    """Print what the journal says was done since; the outcome itself has only counts."""
    for record in store.audit(since):
        if record["event_type"] not in _STEPS:
            continue
        if options.json:
            print_json(record)
            continue
        name = "/".join(str(record[key]) for key in ("tenant_id", "workflow_id", "artifact_id"))
        print_line(printable(f"{record['event_type']}: {name} ({record['reason']})"))


def _read_plan(file: str) -> Iterator[Move]:
    """Read moves, a JSON object a line; `InvalidValue` names the line that is none."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValue(file, str(error)) from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields: Any = from_json(line)
        except InvalidValue as error:
            raise InvalidValue(f"{file}:{number}", str(error.facts[1])) from None
        if not isinstance(fields, dict) or any(
            not isinstance(fields.get(name), kind) or isinstance(fields[name], bool)
            for name, kind in _MOVE.items()
        ):
            why = "it is no move: a line of `kvstate --json lifecycle plan` is wanted"
            raise InvalidValue(f"{file}:{number}", why)
        yield move_of(fields)


def explain(options: Namespace) -> int:
    """Say why an artifact is where it is, and what becomes of it."""
    with open_door(options) as store:
        found = store.lifecycle.explain(options.name)
    if options.json:
        steps = [{"action": act, "due_at": moment_text(due_ns)} for act, due_ns in found.steps]
        print_json({**found._asdict(), "steps": steps})
        return DONE
    print_line(printable(f"{found.name}: {found.tier}, decided by: {found.rule}"))
    for action, due_ns in found.steps:
        print_line(f"  {moment_text(due_ns)} {action}")
    for why in found.why:
        print_line(printable(f"  {why}"))
    return DONE


def summary(options: Namespace) -> int:
    """Print the tiers, the last run and what is due next."""
    with open_door(options) as store:
        facts = facts_with_times(store.lifecycle.summary())
    print_json(facts) if options.json else print_tree(facts)
    return DONE


def policy(options: Namespace) -> int:
    """Print the rules in force."""
    with open_door(options) as store:
        _print_policy(options, store.lifecycle.policy())
    return DONE


def _print_policy(options: Namespace, settings: dict[str, Any]) -> None:
    settings = spoken(settings)
    if options.json:
        print_json(settings)
        return
    tenants = settings.pop("tenants", None) or {}
    tables = {"lifecycle": settings, **({"tenants": tenants} if tenants else {})}
    print_line(as_toml(tables))


def configure(options: Namespace) -> int:
    """Change rules for every process, and print all in force."""
    given = dict(_setting(text) for text in options.settings)
    if options.rules is not None:
        given["rules"] = _read_rules(Path(options.rules))
    if not given:
        raise InvalidValue("KEY=VALUE", "give some, or --rules FILE; `policy` prints them")
    if options.tenant is not None:
        given = {"tenants": {options.tenant: given}}
    with open_door(options) as store:
        _print_policy(options, store.lifecycle.configure(**given))
    return DONE


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidValue(text, "it has not the form KEY=VALUE; KEY= takes a change back")
    if not value:
        return key, None
    if value in {"true", "false"}:
        return key, value == "true"
    if key.endswith("_days"):
        return key, value if value == "never" else _days(value)
    return key, int(value) if value.isascii() and value.isdecimal() else value


def _days(value: str) -> float:
    """Give days: "14", or a duration like "36h"."""
    try:
        return float(value)
    except ValueError:
        return parse_duration(value) / _DAY_SECONDS


def _read_rules(file: Path) -> list[Any]:
    """Read ``[[rules]]`` or ``[[lifecycle.rules]]``; anything beside them is refused."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidConfig(str(file), str(error)) from None
    inner = table.get("lifecycle", table)
    if (inner is not table and len(table) > 1) or list(inner) != ["rules"]:
        raise InvalidConfig(str(file), "it has something else than [[rules]]")
    rules: list[Any] = inner["rules"]
    return rules
