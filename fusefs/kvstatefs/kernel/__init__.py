"""The tree on Linux's own FUSE protocol: the adapter that speaks to `/dev/fuse` without libfuse."""

from __future__ import annotations
