"""Commands that look whether everything is whole: verify, scrub, check."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from kvstate.cli.doors import open_door
from kvstate.cli.exits import DAMAGED, DONE, NOT_FOUND
from kvstate.cli.output import complain, print_json, print_line, printable
from kvstate.errors import InvalidValue, NotFound, StateError
from kvstate.facts import facts_with_times
from kvstate.progress import Meter
from kvstate.sizes import format_size, parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from kvstate.artifact_reading import Verified
    from kvstate.remote import RemoteStore
    from kvstate.store import Store

__all__ = ["check", "scrub", "verify"]


def verify(options: Namespace) -> int:
    """Read artifacts and compare checksums; name what is damaged, and go on with the rest."""
    if bool(options.prefixes) == options.all:
        raise InvalidValue("NAME|PREFIX", "give some, or --all")
    seen = damaged = size = 0
    missing = []
    with open_door(options) as store:
        for prefix in options.prefixes or [""]:
            before = seen
            with Meter(_bytes_below(store, prefix), prefix or "verify") as meter:
                for verified in _verified(store, prefix):
                    meter.add(verified.size)
                    seen += 1
                    size += verified.size
                    damaged += bool(verified.problem)
                    if options.json:
                        print_json(verified._asdict())
                    elif verified.problem:
                        print_line(printable(f"{verified.name}: {verified.problem}"))
            if seen == before and prefix:
                missing.append(prefix)
    if not options.json:
        print_line(f"{seen} artifacts, {format_size(size)}: {damaged or 'none'} damaged")
    for prefix in missing:
        complain(f"no artifact {prefix!r}, and none below it")
    return DAMAGED if damaged else NOT_FOUND if missing else DONE


def _verified(store: Store | RemoteStore, prefix: str) -> Iterator[Verified]:
    with suppress(NotFound):  # who asks sees that nothing came
        yield from store.artifacts.verify_all(prefix)


def _bytes_below(store: Store | RemoteStore, prefix: str) -> int | None:
    """Give how much there is to read, if that is known."""
    try:
        return store.artifacts.usage(prefix).bytes
    except StateError:
        return None  # neither a tenant nor a workflow


def scrub(options: Namespace) -> int:
    """Read everything that is stored; exit 5 when something was damaged, also if it was healed."""
    rate = 0 if options.rate is None else parse_size(options.rate.removesuffix("/s"))
    with open_door(options) as store, Meter(None, "scrub") as meter:
        found = store.scrub(rate=rate, restart=options.all, progress=meter.reach)
    facts = facts_with_times(found._asdict())
    if options.json:
        print_json(facts)
    else:
        for what, why in found.damaged:
            print_line(printable(f"{what}: {why}"))
        state = f"{len(found.damaged)} damaged, {found.healed} healed" if found.damaged else "clean"
        print_line(
            f"{state}: {format_size(found.bytes)}, {found.records} records, {found.blobs} blobs"
        )
    return DAMAGED if found.damaged else DONE


def check(options: Namespace) -> int:
    """Print every inconsistency, and what was repaired of them."""
    with open_door(options) as store, Meter(None, "check", unit="") as meter:
        report = store.check(verify=options.verify, repair=options.repair, progress=meter.reach)
    if options.json:
        problems = [problem._asdict() for problem in report.problems]
        repaired = [problem._asdict() for problem in report.repaired]
        facts = {"clean": report.clean, "problems": problems, "counts": report.counts}
        print_json({**facts, "repaired": repaired} if options.repair else facts)
        return DONE if report.clean else DAMAGED
    for problem in report.repaired:
        print_line(printable(f"repaired: {problem.kind}: {problem.where}: {problem.why}"))
    for problem in report.problems:
        print_line(printable(f"{problem.kind}: {problem.where}: {problem.why}"))
    counts = ", ".join(f"{count} {name}" for name, count in report.counts.items())
    state = "clean" if report.clean else f"{len(report.problems)} problems"
    print_line(f"{state}: {counts}")
    return DONE if report.clean else DAMAGED
