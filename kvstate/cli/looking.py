"""Commands that look at the store: journal, watch, stats."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from kvstate.audit import newest_events
from kvstate.cli.doors import open_door
from kvstate.cli.exits import DAMAGED, DONE, FAILED
from kvstate.cli.output import (
    event_line,
    print_json,
    print_line,
    print_table,
    print_tree,
    printable,
)
from kvstate.durations import parse_duration
from kvstate.errors import InvalidValue
from kvstate.facts import event_facts, facts_with_times
from kvstate.jsonview import to_json
from kvstate.sizes import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from kvstate.journal import Event
    from kvstate.remote import RemoteStore
    from kvstate.store import Store

__all__ = [
    "journal",
    "stats",
    "watch",
]

_TENANTS_SHOWN: Final = 10
_SHOWN_ELSEWHERE: Final = ("tiers", "tenants", "free_bytes", "places")


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
        facts: dict[str, Any] = store.stats()
    if options.json:
        print_json(facts_with_times(facts))
        return DONE
    _print_tiers(facts)
    print_line("")
    _print_tenants(facts["tenants"])
    print_line("")
    rest = {key: facts[key] for key in facts if key not in _SHOWN_ELSEWHERE}
    print_tree(facts_with_times({**rest, "places": _places(facts["places"])}))
    return DONE


def _print_tiers(facts: dict[str, Any]) -> None:
    rows = [
        (
            tier,
            str(held["artifacts"]),
            format_size(held["bytes"]),
            "-" if facts["free_bytes"][tier] is None else format_size(facts["free_bytes"][tier]),
        )
        for tier, held in facts["tiers"].items()
    ]
    print_table(("tier", "artifacts", "size", "free"), rows)


def _places(places: Any) -> dict[str, str]:
    """Give a line for each tier: where it is, and why it does not answer, if so."""
    return {
        tier: str(place["path"]) if place["available"] else f"unavailable: {place['reason']}"
        for tier, place in places.items()
    }


def _print_tenants(tenants: dict[str, dict[str, int]]) -> None:
    """Print the largest: there may be very many, and `usage` has them all."""
    by_size = sorted(tenants.items(), key=lambda each: (-each[1]["bytes"], each[0]))
    rows = [
        (name, str(held["artifacts"]), format_size(held["bytes"]))
        for name, held in by_size[:_TENANTS_SHOWN]
    ]
    print_table(("tenant", "artifacts", "size"), rows)
    if len(tenants) > _TENANTS_SHOWN:
        print_line(f"and {len(tenants) - _TENANTS_SHOWN} more: kvstate usage")
