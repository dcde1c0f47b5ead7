"""Put what dpkg knows into the store: one key per installed Debian package, in namespace `dpkg`.

    python examples/dpkg.py [--socket SOCKET] [STATUS_FILE]

A program like any other that uses the daemon: it reads a file, makes plain values, and sets them
all in one commit. Afterwards `kvstate get dpkg bash` answers, and so does `cat state/dpkg/bash`
in the mount.
"""  # noqa: INP001  (a script, not a package)

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import kvstate

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUS = Path("/var/lib/dpkg/status")

Fields = dict[str, str]
Package = dict[str, str | int | bool | list[str]]


def stanzas(text: str) -> Iterator[Fields]:
    """Give the fields of each package; a field goes on over the lines that begin with a blank."""
    for stanza in re.split(r"\n{2,}", text.strip()):
        fields: Fields = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] += "\n" + line[1:]
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        yield fields


def package(fields: Fields) -> Package:
    """Give the value that is kept for one package."""
    depends = fields.get("Depends", "")
    return {
        "version": fields["Version"],
        "architecture": fields["Architecture"],
        "section": fields.get("Section", ""),
        "essential": fields.get("Essential") == "yes",
        "installed_bytes": 1024 * int(fields.get("Installed-Size", "0")),
        "depends": [each.strip() for each in depends.split(",") if each.strip()],
        "summary": fields.get("Description", "").partition("\n")[0],
    }


def installed(text: str) -> dict[str, Package]:
    """Give every installed package by its name, or `name:architecture` where there are two."""
    found = [each for each in stanzas(text) if each.get("Status", "").endswith(" installed")]
    times = Counter(each["Package"] for each in found)
    return {
        name if times[name] == 1 else f"{name}:{each['Architecture']}": package(each)
        for each in found
        for name in [each["Package"]]
    }


def load(socket: str | None, status: Path = STATUS) -> int:
    """Set one key per package in the daemon's store; give how many there are."""
    packages = installed(status.read_text(encoding="utf-8"))
    with kvstate.connect(socket) as store:
        store.namespace("dpkg").set_many(packages)
    return len(packages)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description="Put what dpkg knows into the store.")
    parser.add_argument("--socket", help="the daemon's socket (default: where it always is)")
    parser.add_argument("status", nargs="?", type=Path, default=STATUS, metavar="STATUS_FILE")
    arguments = parser.parse_args()
    count = load(arguments.socket, arguments.status)
    print(f"{count} packages are in namespace dpkg")  # noqa: T201  (a command's answer)


if __name__ == "__main__":
    main()
