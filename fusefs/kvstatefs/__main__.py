"""``python -m kvstatefs``: the command `kvstatefs`."""

from __future__ import annotations

import sys

from kvstatefs.main import main

sys.exit(main())
