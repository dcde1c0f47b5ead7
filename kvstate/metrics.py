"""A store's figures in the text format of Prometheus: the only file that imports its library.

No label says a name of the store's: not of a tenant, a namespace, a key or an artifact. The library
is loaded by the first who asks (about 0.1 s).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from kvstate.clock import SECOND
from kvstate.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from kvstate.health import Health

__all__ = ["metrics_text"]

_PLAIN: Final = {
    "revision": "The newest revision",
    "journal_oldest": "The oldest revision that the journal has",
    "journal_bytes": "Bytes of the journal",
    "namespaces": "Namespaces",
    "keys": "Keys, also expired ones that are not swept yet",
    "keys_bytes": "Bytes of keys and values",
    "held": "Artifacts that are held",
    "failed": "Artifacts that could not be moved yet",
    "records_bytes": "Bytes of the record file in use or free for use again",
    "records_free_bytes": "Bytes of the record file that are free for use again",
    "map_bytes": "The most bytes that the record file may have",
    "readers": "Reader slots that were ever taken at once",
    "readers_max": "Reader slots",
}
_RESULTS: Final = {
    "promoted_to_warm": "to_warm",
    "promoted_to_cold": "to_cold",
    "purged": "purged",
    "expired": "expired",
    "emptied": "emptied",
    "refused": "refused",
    "errors": "errors",
}


def metrics_text(
    stats: Mapping[str, Any],
    health: Health,
    operations: Mapping[str, int],
    errors: Mapping[tuple[str, int], int],
) -> bytes:
    """Give the text; ``operations`` of a mount by kind, and its errors by kind and errno."""
    from prometheus_client import generate_latest  # noqa: PLC0415  (loads for 0.1 s)

    figures = [*_of_store(stats), *_of_health(health), *_of_mount(operations, errors)]
    return generate_latest(_Figures(figures))


class _Figures:
    """What the library takes for a registry."""

    def __init__(self, figures: list[Metric]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """Give all figures."""
        return self._figures


def _gauge(name: str, says: str, values: Mapping[Any, float], *labels: str) -> Metric:
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415  (as above)

    gauge = GaugeMetricFamily(f"kvstate_{name}", says, labels=labels)
    for words, value in values.items():
        gauge.add_metric(words, value)
    return gauge


def _counter(name: str, says: str, values: Mapping[Any, float], *labels: str) -> Metric:
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415  (as above)

    counter = CounterMetricFamily(f"kvstate_{name}", says, labels=labels)
    for words, value in values.items():
        counter.add_metric(words, value)
    return counter


def _of_store(stats: Mapping[str, Any]) -> Iterator[Metric]:
    yield _gauge("info", "The version of kvstate", {(__version__,): 1}, "version")
    for name, says in _PLAIN.items():
        if name in stats:
            yield _gauge(_NAMES.get(name, name), says, {(): stats[name]})
    if not stats:
        return
    page = stats["page_bytes"] or 1
    pages = {
        ("used",): (stats["records_bytes"] - stats["records_free_bytes"]) // page,
        ("free",): stats["records_free_bytes"] // page,
    }
    yield _gauge("records_pages", "Pages of the record file", pages, "state")
    tiers = stats["tiers"]
    for what, says in (("artifacts", "Artifacts"), ("bytes", "Bytes of artifacts")):
        values = {(tier,): held[what] for tier, held in tiers.items()}
        name = "artifacts" if what == "artifacts" else "artifacts_bytes"
        yield _gauge(name, f"{says}, by tier", values, "tier")
        yield _gauge(f"trash_{what}", f"{says} in the trash", {(): stats["trash"][what]})
    yield _gauge("quarantined", "Contents in quarantine", {(): stats["damaged"]["blobs"]})
    yield from _of_places(stats["places"])
    yield from _of_lifecycle(stats)


_NAMES: Final = {"held": "artifacts_held", "failed": "artifacts_unmoved"}


def _of_places(places: Mapping[str, Any]) -> Iterator[Metric]:
    available = {(tier,): float(place["available"]) for tier, place in places.items()}
    yield _gauge("tier_available", "Whether a tier's folder can be used", available, "tier")
    for what in ("free", "total"):
        known = {
            (tier,): place[f"{what}_bytes"]
            for tier, place in places.items()
            if place[f"{what}_bytes"] is not None
        }
        yield _gauge(f"tier_{what}_bytes", f"Bytes {what} on a tier's disk", known, "tier")


def _of_lifecycle(stats: Mapping[str, Any]) -> Iterator[Metric]:
    last = stats["last_run"]
    if last is not None:
        results = {(word,): last[name] for name, word in _RESULTS.items()}
        yield _gauge("lifecycle_last_run", "What the last run did", results, "result")
        yield _gauge("lifecycle_last_run_seconds", "How long it took", {(): last["seconds"]})
        at = {(): last["at_ns"] / SECOND}
        yield _gauge("lifecycle_last_run_timestamp_seconds", "When it was", at)
    if stats["next_due_ns"] is not None:
        due = {(): stats["next_due_ns"] / SECOND}
        yield _gauge("lifecycle_next_due_timestamp_seconds", "When something is due", due)


def _of_health(health: Health) -> Iterator[Metric]:
    now = {(word,): float(health.status == word) for word in ("ok", "degraded", "failed")}
    yield _gauge("health", "How the store is: 1 for what it is", now, "status")
    yield _gauge("problems", "How many things are wrong", {(): len(health.troubles)})
    yield _gauge("read_only", "Whether it was opened for reading only", {(): health.read_only})


def _of_mount(
    operations: Mapping[str, int], errors: Mapping[tuple[str, int], int]
) -> Iterator[Metric]:
    kinds = {(kind,): count for kind, count in sorted(operations.items())}
    yield _counter("mount_operations", "Operations of this mount", kinds, "operation")
    failed = {
        (kind, errno.errorcode.get(number, str(number))): count
        for (kind, number), count in sorted(errors.items())
    }
    says = "Operations of this mount that were answered with an error"
    yield _counter("mount_errors", says, failed, "operation", "errno")
