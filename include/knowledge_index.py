"""The knowledge base in the vector store: what changed, indexing, search, citations."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from include.documents import Chunk, read_documents, split_document
from include.embeddings import Embedder
from include.vector_store import open_vector_store

if TYPE_CHECKING:
    from include.vector_store import VectorStore

COLLECTION = "kestrel_help"

log = logging.getLogger(__name__)


class Index(NamedTuple):
    """A vector store and the embedding model whose vectors it holds."""

    store: VectorStore
    embedder: Embedder


def open_index(name: str) -> Index:
    """Open the index `name`. Each embedding model has a collection of its own: vectors of two never mix."""
    embedder = Embedder()
    model = re.sub(r"[^a-z0-9]+", "_", embedder.model_id.lower()).strip("_")
    return Index(open_vector_store(f"{name}__{model}"), embedder)


def changed_documents(name: str, batch_size: int) -> list[list[str]]:
    """The names of documents that the index lacks or has in another version, in lists of `batch_size`.

    The first call creates the index, so that tasks which fill it side by side find it there.
    """
    documents = list(read_documents())
    index = open_index(name)
    stored = index.store.checksums()
    if not stored:
        index.store.create(len(index.embedder.embed_query("How long is a vector?")))
    changed = [doc.source for doc in documents if stored.get(doc.source) != doc.checksum]
    log.info("%d of %d documents are new or changed.", len(changed), len(documents))
    return [changed[start : start + batch_size] for start in range(0, len(changed), batch_size)]


def delete_removed_documents(name: str) -> list[str]:
    """Delete from the index what is no longer in the knowledge base; return the documents' names."""
    store = open_index(name).store
    removed = sorted(store.checksums().keys() - {document.source for document in read_documents()})
    store.delete_documents(removed)
    log.info("%d documents removed.", len(removed))
    return removed


def index_documents(name: str, sources: Sequence[str]) -> int:
    """Chunk, embed and store these documents in place of their earlier versions; return the number of chunks."""
    index = open_index(name)
    wanted = set(sources)
    chunks: list[Chunk] = []
    for document in read_documents():
        if document.source in wanted:
            chunks += split_document(document)
    vectors = index.embedder.embed_documents([f"{chunk.title}\n{chunk.text}" for chunk in chunks])
    index.store.replace_documents(chunks, vectors)
    log.info("Indexed %d chunks of %d documents.", len(chunks), len(sources))
    return len(chunks)


def refresh_index(name: str, batch_size: int = 50) -> int:
    """Bring the index in step with the documents, batch by batch, and return the number of its chunks.

    A retry goes on with what is still missing.
    """
    for sources in changed_documents(name, batch_size):
        index_documents(name, sources)
    delete_removed_documents(name)
    return open_index(name).store.count()


def check_retrieval(name: str, questions: Sequence[dict[str, str]], limit: int) -> list[dict[str, str]] | None:
    """The questions whose `document` is not among the first `limit` hits; None if the index is empty."""
    index = open_index(name)
    if not index.store.count():
        return None
    vectors = index.embedder.embed_queries([each["question"] for each in questions])
    return [
        each
        for each, vector in zip(questions, vectors, strict=True)
        if each["document"] not in [hit.source for hit in index.store.search(vector, limit)]
    ]


def search(name: str, query: str, limit: int, min_score: float) -> list[dict[str, Any]]:
    """The chunks nearest to `query` with at least `min_score`, best first, as dicts of `vector_store.Hit`."""
    index = open_index(name)
    hits = index.store.search(index.embedder.embed_query(query), limit)
    log.info("Scores: %s", ", ".join(f"{hit.source} {hit.score:.2f}" for hit in hits) or "nothing found")
    return [asdict(hit) for hit in hits if hit.score >= min_score]


def cited_sources(passages: Sequence[dict[str, Any]], answer: dict[str, Any] | None) -> list[str]:
    """The documents that an answer cites by passage number (from 1). Numbers nobody retrieved do not count."""
    numbers = [number for number in (answer or {"passages": []})["passages"] if 1 <= number <= len(passages)]
    return list(dict.fromkeys(passages[number - 1]["source"] for number in numbers))
