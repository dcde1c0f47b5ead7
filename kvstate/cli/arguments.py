"""What can be typed: every command, its arguments and its help, in one place."""

from __future__ import annotations

import argparse

from kvstate.cli.artifact_arguments import add_artifacts, add_content, add_demo, add_lifecycle
from kvstate.version import __version__

TYPE_CHECKING = False  # as a type checker reads it; `typing` costs a tenth of `--help`
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

__all__ = ["parser"]

_EPILOG = """\
Which store: --store, --socket, $KVSTATE_STORE, $KVSTATE_SOCKET, or the default socket of a daemon.
Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 damaged data found, 6 unavailable.
"""


def _path(text: str) -> Path:
    from pathlib import Path  # noqa: PLC0415  (4 ms that `--help` does not need)

    return Path(text)


def parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="kvstate",
        description="Namespaced keys with a TTL, and artifacts in tiers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"kvstate {__version__}")
    door = top.add_mutually_exclusive_group()
    door.add_argument("--store", metavar="DIR", type=_path, help="work on this store, in-process")
    door.add_argument("--socket", metavar="PATH", help="ask the daemon on this socket")
    top.add_argument("--json", action="store_true", help="print one JSON object, or one a line")
    commands = top.add_subparsers(metavar="COMMAND", required=True, title="commands")

    def add(name: str, run: str, text: str, **defaults: Any) -> Callable[..., Any]:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run, **defaults)
        return command.add_argument

    _add_keys(add)
    add_artifacts(add)
    add_content(add)
    add_lifecycle(commands)
    _add_looking(add)
    _add_config(commands)
    add_demo(commands)
    return top


def _add_keys(add: Callable[..., Callable[..., Any]]) -> None:
    arg = add("get", "keys:get", "print a key's value")
    arg("namespace", metavar="NS")
    arg("key", metavar="KEY")
    arg("--revision", metavar="REV", type=int, help="as of this revision")
    arg = add("set", "keys:put", "set a key", creates=True)
    arg("namespace", metavar="NS")
    arg("key", metavar="KEY")
    arg("value", metavar="VALUE", help="the value; - reads it from standard input")
    arg("--ttl", metavar="TIME", help='expire after this time: "90", "1h30m", "7d", "never"')
    arg("--keep-ttl", action="store_true", help="expire when it would have anyway")
    arg("--type", choices=("text", "json", "int"), default="text", help="what VALUE is")
    arg("--if-absent", action="store_true", help="only when the key is not there (else exit 4)")
    arg("--if-revision", metavar="REV", type=int, help="only when it has this one (else exit 4)")
    arg = add("incr", "keys:increment", "add to the number under a key, and print it", creates=True)
    arg("namespace", metavar="NS")
    arg("key", metavar="KEY")
    arg("by", metavar="BY", nargs="?", default="1")
    arg = add("expire", "keys:expire", "let a key expire after a time (never: not at all)")
    arg("namespace", metavar="NS")
    arg("key", metavar="KEY")
    arg("ttl", metavar="TIME")
    arg("--only-if", choices=("absent", "present", "longer", "shorter"), help="else exit 4")
    arg = add("del", "keys:delete", "delete keys")
    arg("namespace", metavar="NS")
    arg("keys", metavar="KEY", nargs="+")
    arg = add("keys", "keys:names", "list the keys of a namespace (or, without one, namespaces)")
    arg("namespace", metavar="NS", nargs="?")
    arg("prefix", metavar="PREFIX", nargs="?", default="")
    arg("--values", action="store_true", help="with values, revisions and times")
    arg = add("history", "namespaces:history", "print what is kept of a key's past")
    arg("namespace", metavar="NS")
    arg("key", metavar="KEY")
    arg("--limit", metavar="N", type=int, help="only the newest so many")
    arg = add("rollback", "namespaces:rollback", "set a key to what it was as of a revision")
    arg("namespace", metavar="NS")
    arg("key", metavar="KEY")
    arg("revision", metavar="REV", type=int)
    arg = add("find", "namespaces:find", "print the entries with these values in indexed fields")
    arg("namespace", metavar="NS")
    arg("conditions", metavar="FIELD=VALUE", nargs="+")
    arg("--limit", metavar="N", type=int, help="at most so many")
    text = "change settings of a namespace (ttl, sliding, history, history_age, on_expire, index, "
    text += "schema, keys_max, bytes_max), and print all"
    arg = add("configure", "namespaces:configure", text, creates=True)
    arg("namespace", metavar="NS")
    arg("settings", metavar="NAME=VALUE", nargs="*", help="NAME= is the default")


def _add_looking(add: Callable[..., Callable[..., Any]]) -> None:
    arg = add("journal", "looking:journal", "print what was changed, or verify that record")
    arg("--since", metavar="REV", type=int, default=0, help="only after this revision")
    arg("--limit", metavar="N", type=int, help="at most so many")
    arg("--newest", metavar="N", type=int, help="only the newest so many")
    arg("--audit", action="store_true", help="what was done to artifacts, a JSON object a line")
    arg("--tenant", metavar="TENANT", help="with --audit: only of this tenant")
    arg("--artifact", metavar="NAME", help="with --audit: only of this artifact")
    arg("--verify", action="store_true", help="walk along the hash chain; exit 5 when altered")
    arg("--expect", metavar="HEX", help="with --verify: a tip that was noted has to be in it")
    arg = add("watch", "looking:watch", "print changes as they happen")
    arg("namespace", metavar="NS", nargs="?")
    arg("--since", metavar="REV", type=int, help="begin after this revision")
    arg("--prefix", metavar="PREFIX", default="", help="only names that begin with this")
    arg("--timeout", metavar="TIME", help="end after this time without a change")
    arg("--exec", metavar="CMD", help="run this in a shell for each, with the event on its stdin")
    add("stats", "looking:stats", "print figures about the store")
    arg = add("check", "verifying:check", "look for inconsistencies; exit 5 when there are some")
    arg("--verify", action="store_true", help="read every byte of every blob, too")
    arg("--repair", action="store_true", help="write anew what can be found again")


def _add_config(commands: Any) -> None:
    text = "the settings"
    config = commands.add_parser("config", help=text, description=text, allow_abbrev=False)
    acts = config.add_subparsers(metavar="show|validate", required=True)
    for name, text in (
        ("show", "print every setting, and where it comes from"),
        ("validate", "check the settings and say nothing else"),
    ):
        act = acts.add_parser(name, help=text, description=text, allow_abbrev=False)
        act.set_defaults(run=f"settings:{name}")
        act.add_argument("--file", type=_path, metavar="FILE", help="instead of the store's own")
    text = "print a completion script for a shell"
    completion = commands.add_parser("completion", help=text, description=text, allow_abbrev=False)
    completion.set_defaults(run="settings:completion")
    completion.add_argument("shell", choices=("bash", "zsh"))
