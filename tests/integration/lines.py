"""The command line without a process for each command."""

from __future__ import annotations

import json

from kvstate.cli import main


class Line:
    """The command line, in this process."""

    def __init__(self, door, capsys, planted=None):
        self.door = door
        self.planted = planted
        self._capsys = capsys

    def run(self, *arguments):
        self._capsys.readouterr()
        try:
            code = main([*map(str, self.door), *map(str, arguments)])
        except SystemExit as end:  # what argparse refuses
            code = end.code
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def __call__(self, *arguments, code=0):
        ended, out, err = self.run(*arguments)
        assert ended == code, (out, err)
        return out

    def error(self, *arguments, code):
        ended, out, err = self.run(*arguments)
        assert ended == code, (out, err)
        return err

    def lines(self, *arguments, code=0):
        return [json.loads(line) for line in self("--json", *arguments, code=code).splitlines()]

    def names(self, *arguments):
        return [each["name"] for each in self.lines(*arguments)]
