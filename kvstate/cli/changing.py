"""Commands that change what an artifact is called, where it lies, what may be done to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstate.cli.doors import open_door
from kvstate.cli.exits import DONE, NOT_FOUND
from kvstate.cli.output import complain, print_json, print_line, printable
from kvstate.facts import artifact_facts, facts_with_times, moment_text
from kvstate.progress import Meter

if TYPE_CHECKING:
    from argparse import Namespace

    from kvstate.artifact_files import Artifact
    from kvstate.artifact_reading import TrashedArtifact

__all__ = ["hold", "mv", "release", "rm", "tier", "trash", "undelete"]


def _show(options: Namespace, artifact: Artifact) -> int:
    if options.json:
        print_json(artifact_facts(artifact))
    return DONE


def rm(options: Namespace) -> int:
    """Delete artifacts; say by the exit code whether all of them were there."""
    missing = []
    with open_door(options) as store:
        for name in options.names:
            there = store.artifacts.delete(name, reason=options.reason, trash=not options.no_trash)
            if options.json:
                print_json({"name": name, "deleted": there})
            if not there:
                missing.append(name)
    for name in missing:
        complain(f"no artifact {name!r}")
    return NOT_FOUND if missing else DONE


def mv(options: Namespace) -> int:
    """Rename an artifact or a folder."""
    with open_door(options) as store:
        moved = store.artifacts.rename(
            options.name, options.new, replace=options.replace, reason=options.reason
        )
    if options.json:
        print_json({"name": options.new} if moved is None else artifact_facts(moved))
    return DONE


def tier(options: Namespace) -> int:
    """Move an artifact to another tier."""
    with open_door(options) as store, Meter(None, options.name) as meter:
        moved = store.artifacts.move(
            options.name, options.tier, reason=options.reason, progress=meter.reach
        )
    return _show(options, moved)


def hold(options: Namespace) -> int:
    """Hold an artifact for a case."""
    with open_door(options) as store:
        held = store.artifacts.hold(options.name, options.case, reason=options.reason)
    return _show(options, held)


def release(options: Namespace) -> int:
    """Take back a hold."""
    with open_door(options) as store:
        released = store.artifacts.release(options.name, options.case, reason=options.reason)
    return _show(options, released)


def trash(options: Namespace) -> int:
    """List what is in the trash, the first to go first; or let it go."""
    with open_door(options) as store:
        if options.empty:
            gone = store.artifacts.empty_trash(options.prefix, reason=options.reason)
            print_json({"emptied": gone}) if options.json else print_line(f"emptied: {gone}")
            return DONE
        for each in store.artifacts.trash(options.prefix):
            if options.json:
                print_json(facts_with_times(each._asdict()))
            else:
                print_line(_trashed_line(each))
    return DONE


def _trashed_line(trashed: TrashedArtifact) -> str:
    gone = str(moment_text(trashed.gone_at_ns))[:16].replace("T", " ")
    why = f" ({trashed.why})" if trashed.why else ""
    return printable(f"{trashed.tier:<4} {trashed.size:>12} until {gone} {trashed.name}{why}")


def undelete(options: Namespace) -> int:
    """Bring an artifact back from the trash."""
    with open_door(options) as store:
        brought = store.artifacts.undelete(options.name)
    return _show(options, brought)
