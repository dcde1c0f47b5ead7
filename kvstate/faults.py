"""Points in the code at which a crash must leave nothing amiss; tests let it crash there.

`point` does nothing unless a test has set a trap. The names are in the order in which they are met.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["POINTS", "point", "set_trap"]

POINTS: Final = (
    "staged",  # content is in a staging file, locked
    "sealed",  # its digest and checksums are known
    "synced",  # a staged file's bytes are on the disk
    "linked",  # it has its final name; the folder of that name is not synced
    "published",  # it has its final name for good; no record names it
    "copying",  # a part of a copy between tiers is written
    "copied",  # all of a plain copy is written, not verified
    "verified",  # it was read back and is right
    "changing",  # a transaction with an entry in the journal is about to commit
    "committed",  # the transaction is on the disk
    "settled",  # the note in the staging folder is gone
    "removed",  # a file that nobody refers to is gone, the note of it is not
    "swept",  # that note is gone, too
)

_trap: Callable[[str], None] | None = None


def point(name: str) -> None:
    """Say that this point is reached."""
    if _trap is not None:
        _trap(name)


def set_trap(trap: Callable[[str], None] | None) -> None:
    """Let a function be called at each point with its name; None for nothing. For tests."""
    global _trap  # noqa: PLW0603  (one process, one trap)
    _trap = trap
