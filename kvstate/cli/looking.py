"""Commands that look at the store: lifecycle, journal, watch, stats, check."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from kvstate.audit import newest_events
from kvstate.cli.doors import open_door
from kvstate.cli.exits import DAMAGED, DONE, FAILED
from kvstate.cli.output import (
    event_facts,
    event_line,
    facts_with_times,
    print_json,
    print_line,
    print_tree,
    printable,
)
from kvstate.durations import parse_duration
from kvstate.errors import InvalidValue
from kvstate.jsonview import to_json
from kvstate.progress import Meter

if TYPE_CHECKING:
    from argparse import Namespace

    from kvstate.journal import Event
    from kvstate.remote import RemoteStore
    from kvstate.store import Store

__all__ = [
    "check",
    "journal",
    "lifecycle_plan",
    "lifecycle_run",
    "lifecycle_summary",
    "stats",
    "watch",
]


def lifecycle_plan(options: Namespace) -> int:
    """List what is due."""
    with open_door(options) as store:
        for move in store.lifecycle.plan(limit=options.limit):
            facts = facts_with_times(move._asdict())
            if options.json:
                print_json(facts)
            else:
                print_line(
                    f"{facts['due_at']} {move.source} -> {move.target} {move.size} {move.name}"
                )
    return DONE


def lifecycle_run(options: Namespace) -> int:
    """Do what is due; exit 1 when some of it failed."""
    with open_door(options) as store, Meter(None, "lifecycle", unit="") as meter:
        outcome = store.lifecycle.run(dry_run=options.dry_run, progress=meter.reach)
    facts = facts_with_times(outcome._asdict())
    if options.json:
        print_json(facts)
    else:
        failures = facts.pop("failures")
        print_tree(facts)
        for name, why in failures:  # type: ignore[attr-defined]
            sys.stderr.write(f"kvstate: {printable(name)}: {printable(why)}\n")
    return FAILED if outcome.errors else DONE


def lifecycle_summary(options: Namespace) -> int:
    """Print the tiers, the last run and what is due next."""
    with open_door(options) as store:
        _show(options, store.lifecycle.summary())
    return DONE


def _show(options: Namespace, facts: dict[str, object]) -> None:
    facts = facts_with_times(facts)
    print_json(facts) if options.json else print_tree(facts)


def journal(options: Namespace) -> int:
    """Print what was changed, or verify the journal; exit 5 when it was altered."""
    _check_journal(options)
    with open_door(options) as store:
        if options.verify:
            return _verify_journal(options, store)
        if options.audit:
            records = store.audit(
                options.since,
                options.limit,
                tenant=options.tenant,
                artifact=options.artifact,
                newest=options.newest,
            )
            for record in records:
                print_json(record)
        elif options.newest is not None:
            for event in newest_events(store, options.newest, options.since):
                _print_event(options, event)
        else:
            for event in store.journal(since=options.since, limit=options.limit):
                _print_event(options, event)
    return DONE


def _check_journal(options: Namespace) -> None:
    """Refuse what does not go together: what would be ignored may have been meant."""
    chosen = options.since, options.limit, options.newest
    if options.verify and (options.audit or chosen != (0, None, None)):
        raise InvalidValue("--verify", "it walks along the whole journal, and prints none of it")
    if options.expect is not None and not options.verify:
        raise InvalidValue("--expect", "it goes with --verify")
    if (options.tenant, options.artifact) != (None, None) and not options.audit:
        raise InvalidValue("--tenant, --artifact", "they go with --audit")
    if options.newest is not None and options.limit is not None:
        raise InvalidValue("--newest", "it does not go with --limit")


def _verify_journal(options: Namespace, store: Store | RemoteStore) -> int:
    report = store.verify_journal(options.expect)
    if options.json:
        print_json({**report._asdict(), "sound": report.sound})
        return DONE if report.sound else DAMAGED
    print_line(f"{report.records} records, revisions {report.first} to {report.last}")
    print_line(f"tip: {report.tip or '-'}")
    if report.altered is not None:
        print_line(printable(f"altered: revision {report.altered}: {report.kind}: {report.why}"))
    if report.noted is False:
        print_line("altered: no record has the expected link: rewritten, cut off, or trimmed since")
    return DONE if report.sound else DAMAGED


def watch(options: Namespace) -> int:
    """Print changes as they happen, each at once."""
    timeout = None if options.timeout is None else parse_duration(options.timeout)
    with open_door(options) as store:
        events = store.watch(
            options.namespace, since=options.since, timeout=timeout, prefix=options.prefix
        )
        failed = False
        for event in events:
            if options.exec is not None:
                failed = _execute(options.exec, event) != 0 or failed
            else:
                _print_event(options, event)
                sys.stdout.flush()
    return FAILED if failed else DONE


def _execute(command: str, event: Event) -> int:
    """Run a command for an event: JSON on its standard input, the main facts in variables."""
    variables = {
        "KVSTATE_EVENT_REVISION": str(event.revision),
        "KVSTATE_EVENT_KIND": event.kind,
        "KVSTATE_EVENT_NAMESPACE": event.scope,
        "KVSTATE_EVENT_NAME": event.name,
    }
    done = subprocess.run(  # noqa: S602  (that it is a shell's is the offer)
        command,
        shell=True,
        check=False,
        input=to_json(event_facts(event)) + "\n",
        text=True,
        env={**os.environ, **variables},
    )
    if done.returncode:
        sys.stderr.write(
            f"kvstate: revision {event.revision}: the command ended with {done.returncode}\n"
        )
    return done.returncode


def _print_event(options: Namespace, event: Event) -> None:
    print_json(event_facts(event)) if options.json else print_line(event_line(event))


def stats(options: Namespace) -> int:
    """Print figures about the store."""
    with open_door(options) as store:
        _show(options, store.stats())
    return DONE


def check(options: Namespace) -> int:
    """Print every inconsistency."""
    with open_door(options) as store, Meter(None, "check", unit="") as meter:
        report = store.check(verify=options.verify, progress=meter.reach)
    if options.json:
        problems = [problem._asdict() for problem in report.problems]
        print_json({"clean": report.clean, "problems": problems, "counts": report.counts})
    else:
        for problem in report.problems:
            print_line(printable(f"{problem.kind}: {problem.where}: {problem.why}"))
        counts = ", ".join(f"{count} {name}" for name, count in report.counts.items())
        state = "clean" if report.clean else f"{len(report.problems)} problems"
        print_line(f"{state}: {counts}")
    return DONE if report.clean else DAMAGED
