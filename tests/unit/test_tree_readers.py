"""Opened contents, shared by who reads the same bytes: never one that is being let go of."""

from __future__ import annotations

import os

import pytest

from kvstate.blob_reader import BlobReader
from kvstatefs.artifact_records import Readers
from kvstatefs.tree import Tree

LARGE = os.urandom(200_000)


@pytest.fixture
def blob(store):
    store.artifacts.put("acme/weekly/a", LARGE)
    return store.catalog.walk_path(("acme", "weekly", "a")).blob


def test_who_reads_the_same_content_shares_a_reader(store, blob):
    readers = Readers(store.blobs)

    assert readers.take(blob) is readers.take(blob)


def test_a_reader_that_is_being_closed_is_not_found_again(store, blob, monkeypatch):
    readers = Readers(store.blobs)
    found = []
    close = BlobReader.close

    def closing(reader):
        close(reader)
        if not found:  # here another thread may ask for the same content
            found.append(None)
            found[0] = readers.take(blob).reader.pread(0, 10)

    with monkeypatch.context() as patch:
        patch.setattr(BlobReader, "close", closing)
        readers.take(blob)
        readers.forget_recent()

    assert found == [LARGE[:10]]


@pytest.mark.parametrize("then", ["replaced", "removed"])
def test_what_grew_and_is_gone_again_leaves_a_reader_what_it_had(store, monkeypatch, then):
    store.artifacts.put("acme/weekly/a", b"first")
    tree = Tree(store)
    node = store.catalog.walk_path(("acme", "weekly", "a")).id
    handle = tree.open(node, os.O_RDONLY)
    append(tree, node, b" and more")
    take = Readers.take

    def late(readers, blob):
        monkeypatch.undo()
        if then == "replaced":
            store.artifacts.put("acme/weekly/a", b"of other bytes altogether")
        else:
            store.artifacts.delete("acme/weekly/a", trash=False)
        return take(readers, blob)

    monkeypatch.setattr(Readers, "take", late)

    assert handle.read(0, 100) == b"first"
    assert handle.read(0, 100) == b"first"
    handle.release()


def append(tree, node, data):
    writer = tree.open(node, os.O_WRONLY | os.O_APPEND)
    writer.write(0, data)
    writer.flush()
    writer.release()
