"""`include.vector_store`: replacing, deleting and finding chunks in LanceDB, by several writers at once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from include.documents import Chunk, Document, split_document
from include.vector_store import open_vector_store
from include.vector_store.lancedb_store import LanceDBStore

pytestmark = pytest.mark.one_stack


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "lancedb")


@pytest.fixture
def store(uri: str) -> LanceDBStore:
    return LanceDBStore(uri, "help")


def chunks(source: str, *texts: str) -> list[Chunk]:
    """One chunk per text, as if they were a document's."""
    (first,) = split_document(Document(source=source, title=source.upper(), text="x"))
    return [
        Chunk(f"{first.id}-{n}", source, first.title, n, text, document_checksum="+".join(texts))
        for n, text in enumerate(texts)
    ]


def vectors(number: int, *, direction: int = 0) -> list[list[float]]:
    return [[float(axis == direction) for axis in range(3)]] * number


def put(store: LanceDBStore, source: str, *texts: str, direction: int = 0) -> None:
    store.create(dimension=3)
    store.replace_documents(chunks(source, *texts), vectors(len(texts), direction=direction))


def test_a_collection_that_does_not_exist_reads_as_an_empty_one(store):
    assert store.count() == 0
    assert store.checksums() == {}
    assert store.search([1.0, 0.0, 0.0], 5) == []
    store.delete_documents(["a.md"])
    store.replace_documents([], [])
    assert store.count() == 0


def test_stored_chunks_are_found_best_first_with_their_similarity(store):
    put(store, "east.md", "to the east", direction=0)
    put(store, "north.md", "to the north", direction=1)
    put(store, "up.md", "up", direction=2)

    hits = store.search([0.8, 0.6, 0.0], 2)

    assert [(hit.source, hit.title, hit.text) for hit in hits] == [
        ("east.md", "EAST.MD", "to the east"),
        ("north.md", "NORTH.MD", "to the north"),
    ]
    assert [hit.score for hit in hits] == pytest.approx([0.8, 0.6], abs=1e-5)
    assert store.search([-1.0, 0.0, 0.0], 3)[-1].score == pytest.approx(-1, abs=1e-5)


def test_storing_the_same_document_again_changes_nothing(store):
    for _ in range(2):
        put(store, "a.md", "one", "two")

    assert store.count() == 2
    assert store.checksums() == {"a.md": "one+two"}


def test_a_shorter_version_leaves_no_chunk_of_the_longer_one_and_other_documents_alone(store):
    put(store, "a.md", "one", "two", "three")
    put(store, "b.md", "other")
    put(store, "a.md", "new")

    assert {hit.text for hit in store.search([1.0, 0.0, 0.0], 10)} == {"new", "other"}
    assert store.checksums() == {"a.md": "new", "b.md": "other"}


def test_deleting_a_document_removes_all_its_chunks_and_no_others(store):
    put(store, "a.md", "one", "two")
    put(store, "b.md", "other")
    store.delete_documents(["a.md", "never-stored.md"])
    store.delete_documents([])

    assert store.checksums() == {"b.md": "other"}
    assert store.count() == 1


@pytest.mark.parametrize("name", ["driver's-guide.md", "a' OR '1'='1.md", 'say "hi".md', "100%_\\.md", "Größe.md"])
def test_names_with_quotes_and_other_signs_are_only_names(store, name):
    put(store, "innocent.md", "stays")
    put(store, name, "one", "two")
    put(store, name, "new")
    assert store.checksums() == {"innocent.md": "stays", name: "new"}

    store.delete_documents([name])
    assert store.checksums() == {"innocent.md": "stays"}


def test_all_checksums_are_read_also_of_many_documents(store):
    many = [chunk for n in range(500) for chunk in chunks(f"{n}.md", "one", "two")]
    store.create(dimension=3)
    store.replace_documents(many, vectors(len(many)))

    assert store.checksums().keys() == {f"{n}.md" for n in range(500)}
    assert store.count() == 1000


def test_collections_are_apart(store, uri):
    put(store, "a.md", "one")

    assert LanceDBStore(uri, "other").count() == 0


@pytest.mark.parametrize("share", [False, True], ids=["other documents", "the same documents"])
def test_writers_at_once_lose_and_duplicate_nothing(store, uri, share):
    put(store, "first.md", "one")
    stores = [LanceDBStore(uri, "help") for _ in range(4)]
    barrier = threading.Barrier(len(stores))

    def write(writer: int) -> None:
        barrier.wait(timeout=60)
        for document in range(3):
            put(stores[writer], f"{0 if share else writer}-{document}.md", "one", "two")

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(write, range(len(stores))))

    documents = 3 if share else 3 * len(stores)
    assert len(store.checksums()) == 1 + documents
    assert store.count() == 1 + 2 * documents


def test_the_connection_chooses_the_store(uri, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", json.dumps({"conn_type": "lancedb", "host": uri}))
    put(open_vector_store("help"), "a.md", "one")

    assert LanceDBStore(uri, "help").count() == 1


def test_a_connection_of_another_type_is_named_with_what_is_supported(monkeypatch):
    from airflow.providers.common.compat.sdk import AirflowFailException

    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", json.dumps({"conn_type": "sqlite", "host": "x"}))

    with pytest.raises(AirflowFailException, match=r"'vector_store_default' has the type 'sqlite'.*'lancedb'"):
        open_vector_store("help")
