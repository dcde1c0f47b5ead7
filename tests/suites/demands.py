"""What a suite needs: commands that may be missing, and whether there is time for its long form."""

from __future__ import annotations

import os
import shutil

import pytest

LONG = os.environ.get("KVSTATE_SUITES") == "long"


def needs(*commands):
    """Skip, by name, where a command is missing (`./run tests` installs them)."""
    missing = [command for command in commands if shutil.which(command) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
