"""kvstatefs: the store seen as files.

`tree.py` says what the store looks like and is tested without a mount; `fusepy_adapter.py` shows it
through libfuse; `main.py` is the command. Mount by hand with ``kvstatefs STORE MOUNTPOINT``.
"""

from __future__ import annotations

__all__: list[str] = []
