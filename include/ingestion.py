"""Bringing the index of the knowledge base in step with its documents, in three steps that can be tasks.

`find_changes` tells what to do, `index_documents` does it, `finish` deletes what is gone, and lets searches see a new
collection once it is full. Each step looks at the documents and at the store anew: whatever died, or runs beside it,
the next run finds what is still missing, and only that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple, TypedDict

from airflow.providers.common.compat.sdk import AirflowFailException

from include.document_formats import UnreadableDocument
from include.documents import Chunk, document_names, file_checksum, read_document, split_document
from include.embeddings import Embedder
from include.knowledge_index import collection_name
from include.vector_store import VECTOR_STORE_CONN_ID, VectorCollection, open_vector_store

# Chunks that are embedded and written together: with 1,536 numbers each, about 50 MB as Python's floats.
CHUNKS_AT_ONCE = 1024

log = logging.getLogger(__name__)


class Indexed(TypedDict):
    """What an `index_documents` did. `embedded` is how many of the chunks the embedding model was asked for."""

    documents: int
    chunks: int
    embedded: int
    unreadable: dict[str, str]


class Finished(TypedDict):
    """What the index is after a run. `removed` names the documents that were deleted from it."""

    collection: str
    chunks: int
    removed: list[str]


class Changes(NamedTuple):
    """The collection of the embedding model of now, and the documents that it lacks or has in another version."""

    collection: str
    documents: list[str]


def find_changes(name: str, conn_id: str = VECTOR_STORE_CONN_ID) -> Changes:
    """What there is to do for the index `name`.

    Makes the collection, if it is not there: tasks that fill it find it there.

    :raises ValueError: there are no documents: a folder that was not deployed must not empty the index.
    """
    names = document_names()
    if not names:
        raise ValueError("There are no documents in the knowledge base.")
    embedder = Embedder()
    with open_vector_store(conn_id) as store:
        collection_id = collection_name(name, embedder)
        collection = store.collection(collection_id)
        collection.create(embedder.dimension)
        stored = collection.documents()
    changed = [source for source in names if stored.get(source) != file_checksum(source)]
    log.info("%d of %d documents are new or changed.", len(changed), len(names))
    return Changes(collection_id, changed)


def in_parts(documents: list[str], most: int) -> list[list[str]]:
    """The documents for each of as few tasks as need be, if one takes `most` at most. Their shares are equal."""
    if not documents:
        return []
    size = ceil(len(documents) / ceil(len(documents) / most))
    return [documents[start : start + size] for start in range(0, len(documents), size)]


def index_documents(
    name: str, collection_id: str, sources: Sequence[str], conn_id: str = VECTOR_STORE_CONN_ID
) -> Indexed:
    """Chunk, embed and store these documents in place of their earlier versions.

    A chunk whose text the index holds already is not embedded again, wherever in its document it stands now. A file
    that cannot be read is left out, with an error in the log; the index keeps its last version that could be read.

    :param collection_id: the collection of `Changes`.
    :raises AirflowFailException: it is for another embedding model than that of now.
    """
    done = Indexed(documents=0, chunks=0, embedded=0, unreadable={})
    embedder = Embedder()
    if collection_name(name, embedder) != collection_id:
        raise AirflowFailException(
            f"The embedding model of {embedder.conn_id!r} has changed since this run began: start a new run."
        )
    with open_vector_store(conn_id) as store:
        collection = store.collection(collection_id)
        for chunks in _groups(_split(sources, done)):
            done["chunks"] += len(chunks)
            done["embedded"] += _index(chunks, collection, embedder)
    log.info("%(documents)d documents, %(chunks)d chunks, of which %(embedded)d were embedded.", done)
    return done


def finish(name: str, collection_id: str, conn_id: str = VECTOR_STORE_CONN_ID) -> Finished:
    """Delete documents that are gone, and point the searches at this collection, if they still use an older one.

    It needs no embedding model.

    :param collection_id: the collection that was filled, of `Changes`.
    :raises ValueError: there is nothing in the collection.
    """
    with open_vector_store(conn_id) as store:
        collection = store.collection(collection_id)
        removed = sorted(collection.documents().keys() - set(document_names()))
        collection.delete_documents(removed)
        chunks = collection.count()
        if not chunks:
            raise ValueError(
                "No document could be indexed, so the index stays as it is. See the log of index_documents."
            )
        collection.optimize()
        if store.active(name) != collection_id:
            store.activate(name, collection_id)
            log.info("Searches now use the collection %s.", collection_id)
        log.info("%d documents removed.", len(removed))
        return Finished(collection=collection_id, chunks=chunks, removed=removed)


def refresh_index(name: str, conn_id: str = VECTOR_STORE_CONN_ID) -> Finished:
    """All three steps, one after the other. A retry goes on with what is still missing."""
    changes = find_changes(name, conn_id)
    if changes.documents:
        index_documents(name, *changes, conn_id)
    return finish(name, changes.collection, conn_id)


def _split(sources: Sequence[str], done: Indexed) -> Iterator[list[Chunk]]:
    """The chunks of one document after the other."""
    for source in sources:
        try:
            chunks = split_document(read_document(source))
        except UnreadableDocument as error:
            log.error("Left out: %s", error)
            done["unreadable"][source] = str(error)
        else:
            done["documents"] += 1
            yield chunks


def _groups(documents: Iterator[list[Chunk]]) -> Iterator[list[Chunk]]:
    """Whole documents, together until they have CHUNKS_AT_ONCE chunks."""
    group: list[Chunk] = []
    for chunks in documents:
        group += chunks
        if len(group) >= CHUNKS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _index(chunks: list[Chunk], collection: VectorCollection, embedder: Embedder) -> int:
    """Store the chunks, and return how many of them had to be embedded."""
    vectors = collection.known_vectors([chunk.checksum for chunk in chunks])
    new = {chunk.checksum: chunk.text for chunk in chunks if chunk.checksum not in vectors}
    vectors |= zip(new, embedder.embed_documents(list(new.values())), strict=True)
    collection.replace_documents(chunks, [vectors[chunk.checksum] for chunk in chunks])
    return len(new)
