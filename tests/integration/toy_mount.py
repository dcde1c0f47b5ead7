"""``python toy_mount.py STORE MOUNTPOINT``: the supervisor with `toy_worker.py` for a worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kvstatefs.kernel.supervisor import Supervisor
from kvstatefs.options import parse_options

store, mountpoint = map(Path, sys.argv[1:])
toy = str(Path(__file__).with_name("toy_worker.py"))
options = parse_options([], str(store))
supervisor = Supervisor(store, mountpoint, options, [], worker=(toy,), settle_seconds=0.2)
print(os.getpid(), flush=True)
sys.exit(supervisor.run(lambda: print("ready", flush=True) is not None))
