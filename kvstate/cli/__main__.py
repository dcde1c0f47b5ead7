"""``python -m kvstate.cli``: the command line without its script."""

from __future__ import annotations

import sys

from kvstate.cli import main

sys.exit(main())
