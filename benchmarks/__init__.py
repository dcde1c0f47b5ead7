"""What kvstate costs beside others: workloads written once, our side and the rivals' side apart."""

from __future__ import annotations
