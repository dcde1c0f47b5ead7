"""The README's tour, executed: what it shows is what happens.

`./run demo` is started in an empty folder, as its first command says, and then every fenced block
runs there in the order of the page. A ``console`` block holds commands after ``$ `` and what they
print, for one shell that lives through the whole page; a ``pycon`` block is a doctest, with one set
of names for the whole page. At the end Ctrl-C stops the demonstration.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import fuse_or_skip

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DONE = "-- this command has ended --"

pytestmark = pytest.mark.fuse


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks():
    text = README.read_text(encoding="utf-8")
    for match in FENCED.finditer(text):
        yield Block(match[1], match[2], text.count("\n", 0, match.start()) + 1)


def commands(block):
    """Give each command of a console block with the output that follows it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command += "\n" + more
        yield command, output.rstrip()


class Shell:
    """One bash, as in a terminal: folders and variables stay from command to command."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command):
        self.process.stdin.write(f"{command}\necho '{DONE}'\n")
        self.process.stdin.flush()
        output = ""
        for line in self.process.stdout:
            output += line
            if output.endswith(f"{DONE}\n"):
                return output.removesuffix(f"{DONE}\n").rstrip()
        raise AssertionError(f"the shell ended in {command!r}: {output}")

    def close(self):
        self.process.communicate()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Give a folder like a clone after `./run demo`, while the demonstration runs."""
    fuse_or_skip()
    (tmp_path / ".venv").symlink_to(sys.prefix)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KVSTATE_SOCKET", raising=False)
    command = [sys.executable, str(REPOSITORY / "examples/demo.py")]
    command += ["--library", str(Path(json.__file__).parent)]  # small, and part of the library
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = ""
    for line in demo.stdout:
        said += line
        if "Ctrl-C stops" in line:
            break
    else:
        pytest.fail(f"the demonstration ended with status {demo.wait()}: {said}")
    yield tmp_path
    demo.send_signal(signal.SIGINT)
    try:
        rest, _ = demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == 0, said + rest
    assert not os.path.ismount("demo/mount")


def test_every_example_of_the_readme_does_what_it_shows(folder):
    shell = Shell(folder)
    names = {}
    shown, happened = [], []

    for block in blocks():
        if block.language == "console":
            for command, output in commands(block):
                shown.append(f"$ {command}\n{output}")
                happened.append(f"$ {command}\n{shell.run(command)}")
        elif block.language == "pycon":
            test = doctest.DocTestParser().get_doctest(block.text, names, "README", "README.md", 0)
            said = []
            result = doctest.DocTestRunner().run(test, out=said.append, clear_globs=False)
            names = test.globs
            shown.append(f"line {block.line}: nothing else than shown")
            happened.append("".join(said) if result.failed else shown[-1])
    shell.close()

    assert happened == shown


def test_every_fenced_block_of_the_readme_is_of_a_kind_that_is_run():
    kinds = {block.language for block in blocks()}

    assert kinds == {"console", "pycon"}


def test_every_link_from_one_page_to_another_leads_somewhere():
    pages = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]

    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]

    assert broken == []
