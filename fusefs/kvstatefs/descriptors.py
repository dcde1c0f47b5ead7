"""Whether a process still has a file open by another descriptor.

A shell that redirects opens the file, duplicates the descriptor and closes the first one; the close
says "store what you have", which is nothing yet. Only the process itself knows that it goes on.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["has_open"]


def has_open(pid: int, path: str) -> bool:
    """Whether the process has a descriptor on this path; False when it cannot be known."""
    try:
        return any(_target(link) == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
