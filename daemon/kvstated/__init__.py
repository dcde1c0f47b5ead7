"""kvstated: keeps a kvstate store alive: its socket, its lifecycle, its mount (`kvstated.main`)."""

from __future__ import annotations

__all__: list[str] = []
