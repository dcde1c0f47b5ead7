"""The command line: `kvstate [--store DIR | --socket PATH] [--json] COMMAND ...`.

Nothing heavy is imported before it is needed: the parser alone answers ``--help``, and a command's
module is loaded when the command is known.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from kvstate.cli.arguments import parser
from kvstate.cli.exits import CLOSED_PIPE, FAILED, INTERRUPTED, code_of
from kvstate.errors import StateError

TYPE_CHECKING = False  # as a type checker reads it; `typing` costs a tenth of `--help`
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; give the exit code (`kvstate.cli.exits`)."""
    options = parser().parse_args(arguments)
    try:
        code = _run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read our output has gone: what Python still wants to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except StateError as error:
        _complain(str(error))
        return code_of(error)
    except OSError as error:
        _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        return FAILED
    return code


def _run(options: Namespace) -> int:
    module, _, function = options.run.partition(":")
    code: int = getattr(import_module(f"kvstate.cli.{module}"), function)(options)
    return code


def _complain(message: str) -> None:
    sys.stderr.write(f"kvstate: {message}\n")
