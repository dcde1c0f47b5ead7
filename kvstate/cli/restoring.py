"""Commands that bring artifacts back: restore, and the drill that tries it out."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kvstate.cli.doors import open_door
from kvstate.cli.exits import DAMAGED, DONE, NOT_FOUND, code_of
from kvstate.cli.output import artifact_line, complain, print_json, print_line, printable
from kvstate.durations import parse_duration
from kvstate.errors import InvalidValue, NotFound, StateError
from kvstate.facts import artifact_facts
from kvstate.policy import TIERS
from kvstate.progress import Meter
from kvstate.sizes import format_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from kvstate.artifact_files import Artifact
    from kvstate.drill import Drill
    from kvstate.remote import RemoteStore
    from kvstate.store import Store

__all__ = ["drill", "restore"]


def restore(options: Namespace) -> int:
    """Bring artifacts back to a hotter tier; what fails is named, and the rest goes on."""
    _check(options)
    period = None if options.period is None else parse_duration(options.period)
    code = DONE
    with open_door(options) as store:
        for each in _chosen(options, store):
            if isinstance(each, StateError):
                complain(str(each))
                code = code or code_of(each)
                continue
            if options.list or options.dry_run:
                _show(options, each)
                continue
            try:
                with Meter(None, each.name) as meter:
                    restored = store.artifacts.restore(
                        each.name,
                        options.tier,
                        for_seconds=period,
                        reason=options.reason,
                        progress=meter.reach,
                    )
            except StateError as error:
                complain(f"{each.name}: {error}")
                code = code or code_of(error)
            else:
                _show(options, restored)
    return code


def _check(options: Namespace) -> None:
    """Refuse what may be meant in two ways."""
    if options.names and (options.workflow is not None or options.auto_select):
        raise InvalidValue("NAME", "give names, or --workflow and --auto-select, not both")
    if not (options.names or options.workflow or options.auto_select or options.list):
        raise InvalidValue("NAME", "give names, --workflow PREFIX, --auto-select or --list")


def _chosen(options: Namespace, store: Store | RemoteStore) -> Iterator[Artifact | StateError]:
    """Give what is to be brought back, or why one of the names cannot be."""
    if not options.names:
        found = store.artifacts.restore_all(
            options.workflow or "",
            options.tier,
            from_tier=options.from_tier,
            limit=1 if options.auto_select else None,
            dry_run=True,
        )
        if not found and not options.list:
            below = f"{options.workflow}/ " if options.workflow else ""
            yield NotFound("artifact", f"{below}in {options.from_tier or 'a colder tier'}")
        yield from found
        return
    for name in options.names:
        try:
            artifact = store.artifacts.stat(name)
        except StateError as error:
            yield error
            continue
        if options.from_tier not in {None, artifact.tier}:
            yield NotFound(f"artifact in the {options.from_tier} tier", name)
        elif TIERS.index(artifact.tier) < TIERS.index(options.tier):
            yield InvalidValue("--tier", f"{name!r} is {artifact.tier}, hotter than {options.tier}")
        else:
            yield artifact


def _show(options: Namespace, artifact: Artifact) -> None:
    print_json(artifact_facts(artifact)) if options.json else print_line(artifact_line(artifact))


def drill(options: Namespace) -> int:
    """Restore a random sample into a folder, and compare it."""
    if options.count < 1:
        raise InvalidValue("--count", f"{options.count} is not positive")
    with open_door(options) as store:
        if options.target is not None:
            return _drill(options, store, options.target)
        with TemporaryDirectory(prefix="kvstate-drill-") as scratch:
            return _drill(options, store, scratch)


def _drill(options: Namespace, store: Store | RemoteStore, target: str) -> int:
    outcome = store.artifacts.drill(
        target, count=options.count, prefix=options.prefix, from_tier=options.from_tier
    )
    if options.json:
        restored = [each._asdict() for each in outcome.restored]
        print_json({**outcome._asdict(), "restored": restored, "ok": outcome.ok})
    else:
        _print_drill(outcome)
    if not outcome.restored:
        complain(f"nothing to restore in the {options.from_tier} tier")
        return NOT_FOUND
    return DONE if outcome.ok else DAMAGED


def _print_drill(outcome: Drill) -> None:
    for name, size, problem in outcome.restored:
        print_line(printable(f"{problem or 'ok'}: {name} ({format_size(size)})"))
    failed = sum(bool(each.problem) for each in outcome.restored)
    print_line(
        f"{len(outcome.restored) - failed} of {len(outcome.restored)} restored and compared,"
        f" {format_size(outcome.bytes)} in {outcome.seconds:.2f} s"
    )
