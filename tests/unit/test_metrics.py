"""A store's figures for Prometheus."""

from __future__ import annotations

import errno

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvstate.health import health_of
from kvstate.metrics import metrics_text


def figures_of(store, operations=None, errors=None):
    text = metrics_text(store.stats(), health_of(store), operations or {}, errors or {})
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_keys_artifacts_and_pages_are_counted(store):
    store.namespace("prs").set_many({"a": 1, "b": 2})
    store.artifacts.put("acme/weekly/report.md", b"text")
    store.artifacts.put("acme/weekly/old.md", b"older", tier="cold")

    found = figures_of(store)

    assert (found["kvstate_namespaces",], found["kvstate_keys",]) == (1, 2)
    assert found["kvstate_artifacts", "hot"] == 1
    assert found["kvstate_artifacts_bytes", "cold"] == 5
    assert found["kvstate_revision",] == store.revision()
    assert found["kvstate_journal_bytes",] > 0
    pages = found["kvstate_records_pages", "used"] + found["kvstate_records_pages", "free"]
    assert pages * store.stats()["page_bytes"] == found["kvstate_records_bytes",]
    assert found["kvstate_health", "ok"] == 1


def test_what_is_deleted_leaves_free_pages(store):
    store.namespace("prs").set_many({str(number): "x" * 2000 for number in range(500)})
    before = figures_of(store)["kvstate_records_free_bytes",]

    store.namespace("prs").clear()
    store.namespace("prs").set("a", 1)

    assert figures_of(store)["kvstate_records_free_bytes",] > before + 500_000


def test_the_last_runs_results_are_told_once_there_was_one(store, clock):
    assert ("kvstate_lifecycle_last_run", "to_warm") not in figures_of(store)
    store.artifacts.put("acme/weekly/report.md", b"text")
    clock.advance(days=8)

    store.lifecycle.run()

    assert figures_of(store)["kvstate_lifecycle_last_run", "to_warm"] == 1


def test_operations_and_errors_of_a_mount_are_counters(store):
    found = figures_of(store, {"read": 7}, {("lookup", errno.ENOENT): 3})

    assert found["kvstate_mount_operations_total", "read"] == 7
    assert found["kvstate_mount_errors_total", "ENOENT", "lookup"] == 3


def test_no_name_of_the_stores_is_told(store):
    store.namespace("secretns").set("secretkey", 1)
    store.artifacts.put("secrettenant/secretflow/secretfile", b"text")
    store.artifacts.hold("secrettenant/secretflow/secretfile", "secretcase")

    text = metrics_text(store.stats(), health_of(store), {}, {})

    assert b"secret" not in text


@pytest.mark.parametrize("stats", [{}])
def test_a_store_that_does_not_answer_still_has_its_health(store, stats):
    text = metrics_text(stats, health_of(store), {}, {})

    assert b'kvstate_health{status="ok"} 1.0' in text
