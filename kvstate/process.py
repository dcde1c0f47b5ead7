"""What a process that serves for long sets for itself: garbage collection, its descriptors."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys

__all__ = ["make_room_for_descriptors", "prepare_to_serve"]


def prepare_to_serve() -> None:
    """Make room for many open files, and collect garbage as a server should.

    With the default thresholds the collector takes more than half of the time that a large frame
    needs to be decoded, while every other thread waits; what is loaded by now is not garbage.
    """
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    make_room_for_descriptors()


def make_room_for_descriptors() -> int:
    """Let this process have as many descriptors as it may have; say how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft if soft != resource.RLIM_INFINITY else sys.maxsize
