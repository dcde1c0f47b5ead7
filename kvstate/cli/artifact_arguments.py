"""What can be typed about artifacts, their content and their lifecycle: a part of the parser."""

from __future__ import annotations

TYPE_CHECKING = False  # as a type checker reads it; `typing` costs a tenth of `--help`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["add_artifacts", "add_content", "add_demo", "add_lifecycle"]

_TIERS = ("hot", "warm", "cold")
_META = "KEY=VALUE is text, KEY:=VALUE is JSON"


def add_artifacts(add: Callable[..., Callable[..., Any]]) -> None:
    """Add what makes, lists, changes and removes artifacts."""
    arg = add("put", "artifacts:put", "store files as artifacts", creates=True)
    arg("files", metavar="FILE", nargs="+", help="a file; - is standard input")
    arg("name", metavar="NAME", help="tenant/workflow/artifact; a folder for several files")
    arg("--tier", choices=_TIERS, default="hot")
    arg("--meta", metavar="KEY=VALUE", action="append", default=[], help=f"metadata: {_META}")
    arg("--parts", action="store_true", help="as NAME/1, NAME/2, ... in this order")
    _reason(arg)
    arg = add("cat", "artifacts:cat", "print an artifact's content")
    arg("name", metavar="NAME")
    _add_ls(add)
    arg = add("stat", "artifacts:stat", "print what is known of an artifact")
    arg("name", metavar="NAME")
    arg = add("usage", "artifacts:usage", "number and bytes per tier of tenants or workflows")
    arg("path", metavar="TENANT[/WORKFLOW]", nargs="?", default="")
    arg = add("rm", "changing:rm", "delete artifacts")
    arg("names", metavar="NAME", nargs="+")
    arg("--no-trash", action="store_true", help="for good, also where there is a trash")
    _reason(arg)
    arg = add("mv", "changing:mv", "give an artifact or a folder another name")
    arg("name", metavar="NAME")
    arg("new", metavar="NEW")
    arg("--replace", action="store_true", help="replace what has the new name")
    _reason(arg)
    arg = add("tier", "changing:tier", "move an artifact to another tier")
    arg("name", metavar="NAME")
    arg("tier", choices=_TIERS)
    _reason(arg)
    _add_restore(add)
    text = "let nothing purge, overwrite, rename or delete an artifact before its release"
    arg = add("hold", "changing:hold", text)
    arg("name", metavar="NAME")
    arg("case", metavar="CASE")
    _reason(arg)
    arg = add("release", "changing:release", "take back a hold (exit 3 when there is none)")
    arg("name", metavar="NAME")
    arg("case", metavar="CASE")
    _reason(arg)
    arg = add("trash", "changing:trash", "list what is in the trash, or empty it")
    arg("prefix", metavar="PREFIX", nargs="?", default="")
    arg("--empty", action="store_true", help="let it go now, for good")
    _reason(arg)
    arg = add("undelete", "changing:undelete", "bring back what was deleted or purged last")
    arg("name", metavar="NAME")


def _reason(arg: Callable[..., Any]) -> None:
    arg("--reason", metavar="TEXT", default="", help="why; the journal keeps it")


def _add_ls(add: Callable[..., Callable[..., Any]]) -> None:
    arg = add("ls", "artifacts:ls", "list artifacts below a folder")
    arg("prefix", metavar="PREFIX", nargs="?", default="")
    arg("--tier", choices=_TIERS, help="only what is in this tier")
    arg("--older-than", metavar="TIME", help='written before: "7d", or a moment like 2026-01-31')
    arg("--newer-than", metavar="TIME", help="written since")
    arg("--min-size", metavar="SIZE", help='at least so large: "64KiB", "1.5GB"')
    arg("--max-size", metavar="SIZE", help="at most so large")
    arg("--meta", metavar="KEY=VALUE", action="append", default=[], help=f"with this: {_META}")
    arg("--held", action="store_true", help="only what is held")
    arg("--newest", action="store_true", help="the last written first")
    arg("--limit", metavar="N", type=int, help="at most so many")
    arg("--after", metavar="NAME", help="go on after the last name of a page")
    arg("--parts", action="store_true", help="of one folder, in order: 2.jpg before 10.jpg")


def _add_restore(add: Callable[..., Callable[..., Any]]) -> None:
    arg = add("restore", "restoring:restore", "bring artifacts back to a hotter tier")
    arg("names", metavar="NAME", nargs="*")
    arg("--workflow", metavar="PREFIX", help="all below this: tenant[/workflow[/...]]")
    arg("--from-tier", choices=("warm", "cold"), help="only what is in this tier")
    arg("--auto-select", action="store_true", help="only the first that is found")
    arg("--list", action="store_true", help="list what could be brought back; change nothing")
    arg("--dry-run", action="store_true", help="list what would be brought back; change nothing")
    arg("--for", metavar="TIME", dest="period", help="for so long; then it goes back by itself")
    arg("--tier", choices=("hot", "warm"), default="hot")
    _reason(arg)


def add_content(add: Callable[..., Callable[..., Any]]) -> None:
    """Add what reads content to see whether it is whole."""
    text = "read artifacts and compare checksums; exit 5 when some are damaged"
    arg = add("verify", "verifying:verify", text)
    arg("prefixes", metavar="NAME|PREFIX", nargs="*")
    arg("--all", action="store_true", help="everything")
    text = "read everything that is stored, from where the last scrub ended; exit 5 as for verify"
    arg = add("scrub", "verifying:scrub", text)
    arg("--rate", metavar="SIZE", help='at most so much a second: "50MiB"')
    arg("--all", action="store_true", help="begin a new round")
    text = "restore a random sample into a folder and compare it; the store stays as it is"
    arg = add("drill", "restoring:drill", text)
    arg("prefix", metavar="PREFIX", nargs="?", default="")
    arg("--count", metavar="N", type=int, default=5)
    arg("--from-tier", choices=_TIERS, default="cold")
    arg("--target", metavar="DIR", help="a folder that stays; else one that is removed")


def add_lifecycle(commands: Any) -> None:
    """Add `lifecycle` with its commands."""
    text = "what is due: plan it, run it, look at it"
    lifecycle = commands.add_parser("lifecycle", help=text, description=text, allow_abbrev=False)
    acts = lifecycle.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, text: str, **defaults: Any) -> Callable[..., Any]:
        act = acts.add_parser(name, help=text, description=text, allow_abbrev=False)
        act.set_defaults(run=f"lifecycle:{name}", **defaults)
        argument: Callable[..., Any] = act.add_argument
        return argument

    arg = add("plan", "list what is due now, in due order; change nothing")
    arg("--limit", type=int, metavar="N", help="at most so many")
    arg("--until", metavar="TIME", help='what becomes due until then, too: "30d", or a moment')
    arg("--after", metavar="DUE,ID", help="go on after a page's last: its due_at_ns and id")
    arg = add("run", "do what is due; exit 1 when some of it failed", dry_run=False)
    arg("--dry-run", action="store_true", help="only count")
    arg("--live", action="store_false", dest="dry_run", help="do it (as without)")
    arg("--plan", metavar="FILE", help="just these moves: what `--json lifecycle plan` printed")
    arg("--verbose", action="store_true", help="print each step, too")
    arg = add("explain", "which rule decides over an artifact, what is due when, what blocks it")
    arg("name", metavar="NAME")
    add("summary", "the tiers, the last run, what is due next")
    add("policy", "print the rules in force, in the form of the settings file")
    text = "change rules for every process, and print all in force; KEY= takes a change back"
    arg = add("configure", text, creates=True)
    arg("settings", metavar="KEY=VALUE", nargs="*", help="such as hot_days=14, cold_days=never")
    arg("--tenant", metavar="TENANT", help="for this tenant alone")
    arg("--rules", metavar="FILE", help="a TOML file with [[rules]], in the place of all there are")


def add_demo(commands: Any) -> None:
    """Add `demo` with its commands."""
    text = "show what kvstate does, on a store that is thrown away"
    demo = commands.add_parser("demo", help=text, description=text, allow_abbrev=False)
    shows = demo.add_subparsers(metavar="rotation", required=True)
    text = "artifacts age through the tiers; one is brought back, all are verified"
    rotation = shows.add_parser("rotation", help=text, description=text, allow_abbrev=False)
    rotation.set_defaults(run="demo:rotation")
    rotation.add_argument("--count", metavar="N", type=int, default=50, help="how many artifacts")
    rotation.add_argument("--force-age", action="store_true", help="0 to 120 days old, not new")
    rotation.add_argument("--tenant", metavar="TENANT", default="acme_corp")
    rotation.add_argument("--dry-run", action="store_true", help="only count what is due")
