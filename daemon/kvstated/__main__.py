"""``python -m kvstated``: the same as the command ``kvstated``."""

from __future__ import annotations

import sys

from kvstated.main import main

if __name__ == "__main__":
    sys.exit(main())
