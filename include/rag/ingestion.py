"""Bringing the index of the knowledge base in step with its documents, in three steps that can be tasks.

`find_changes` lists the documents and decides what to do, `index_documents` indexes what is new, `finish` deletes what
is gone, and lets searches see a new collection once it is full. The list alone decides, as each step may run on another
worker, whose folder may be older or empty. Whatever died, or runs at the same time, the next run finds what is still
missing, and only that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from math import ceil
from typing import NamedTuple, TypedDict

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from include.ai.embeddings import Embedder
from include.common.text import clean_text
from include.rag.documents import KNOWLEDGE_BASE, Chunk, document_names, file_checksum, read_document, split_document
from include.rag.formats import UnreadableDocument
from include.rag.search import collection_name
from include.rag.stores import VECTOR_STORE_CONN_ID, VectorCollection, open_vector_store

# Chunks that are embedded and written together: with 1,536 numbers each, about 50 MB as Python's floats.
CHUNKS_AT_ONCE = 1024
# A folder that lacks more than this share of the indexed documents, and has no other, was not deployed completely.
MOST_GONE = 0.5
LONGEST_REASON = 500

log = logging.getLogger(__name__)


class Indexed(TypedDict):
    """What an `index_documents` did.

    `embedded` is how many of the chunks the embedding model was asked for. Two kinds of documents were left out:
    `unreadable` has the reason for each, `differing` those that are not what was listed.
    """

    documents: int
    chunks: int
    embedded: int
    unreadable: dict[str, str]
    differing: list[str]


class Finished(TypedDict):
    """What the index is after a run. `removed` names the documents that were deleted from it."""

    collection: str
    chunks: int
    removed: list[str]


class Changes(NamedTuple):
    """What `find_changes` found, with checksums by document.

    :param collection: that of the current embedding model.
    :param documents: those that the collection lacks or has in another version, as they are listed.
    :param gone: those of the collection that are not listed, as they are stored.
    """

    collection: str
    documents: dict[str, str]
    gone: dict[str, str]


def find_changes(name: str, conn_id: str = VECTOR_STORE_CONN_ID) -> Changes:
    """What there is to do for the index `name`.

    Makes the collection, if it is not there: tasks that fill it find it there.

    :raises ValueError: there are no documents, or far too few: a folder that was not deployed, or not completely, must
        not empty the index. A retry may run on a worker that has them.
    """
    listed = {source: file_checksum(source) for source in document_names()}
    embedder = Embedder()
    with open_vector_store(conn_id) as store:
        collection_id = collection_name(name, embedder)
        collection = store.collection(collection_id)
        collection.create(embedder.dimension)
        stored = collection.documents()
        active = store.active(name) or collection_id
        indexed = stored if active == collection_id else store.collection(active).documents()
    _check_complete(listed.keys(), indexed.keys())
    changed = {source: checksum for source, checksum in listed.items() if stored.get(source) != checksum}
    gone = {source: checksum for source, checksum in stored.items() if source not in listed}
    log.info("%d of %d documents are new or changed, %d are gone.", len(changed), len(listed), len(gone))
    return Changes(collection_id, changed, gone)


def _check_complete(listed: Set[str], indexed: Set[str]) -> None:
    missing = indexed - listed
    if listed <= indexed and len(missing) > MOST_GONE * len(indexed):
        raise ValueError(
            f"{KNOWLEDGE_BASE} lacks {len(missing)} of the {len(indexed)} documents of the index, among them "
            f"{min(missing)}, and has no other document: it was probably not deployed completely. The index stays as "
            "it is. Deploy all documents, or set GENAI_KNOWLEDGE_BASE to their folder on every worker. If so many "
            "were deleted on purpose, raise MOST_GONE in include/rag/ingestion.py."
        )


def in_parts(documents: Mapping[str, str], most: int) -> list[dict[str, str]]:
    """The documents for each of as few tasks as need be, if one takes `most` at most. Their shares are equal."""
    if not documents:
        return []
    items = list(documents.items())
    size = ceil(len(items) / ceil(len(items) / most))
    return [dict(items[start : start + size]) for start in range(0, len(items), size)]


def index_documents(
    name: str, collection_id: str, documents: Mapping[str, str], conn_id: str = VECTOR_STORE_CONN_ID
) -> Indexed:
    """Chunk, embed and store these documents in place of their earlier versions.

    A chunk whose text the index holds already is not embedded again, wherever in its document it stands now. A document
    that cannot be used, or is not as listed (it was edited since, or this worker has an older folder), is left out,
    with an error in the log; the index keeps its last version.

    :param collection_id: the collection of `Changes`.
    :param documents: all or some of the documents of `Changes`.
    :raises AirflowFailException: the collection is for another embedding model than the current one.
    :raises AirflowException: documents are not as listed, and a new collection must not replace the old one without
        them. A retry may run on a worker that has them.
    """
    done = Indexed(documents=0, chunks=0, embedded=0, unreadable={}, differing=[])
    embedder = Embedder()
    if collection_name(name, embedder) != collection_id:
        raise AirflowFailException(
            f"The embedding model of {embedder.conn_id!r} has changed since this run began: start a new run."
        )
    with open_vector_store(conn_id) as store:
        collection = store.collection(collection_id)
        for chunks in _groups(_split(documents, done)):
            done["chunks"] += len(chunks)
            done["embedded"] += _index(chunks, collection, embedder)
        if done["differing"] and store.active(name) not in (None, collection_id):
            raise AirflowException(
                f"{len(done['differing'])} documents, among them {done['differing'][0]}, are not as find_changes "
                "listed them (see the log). The new collection must not replace the old one without them: start a new "
                "run."
            )
    log.info("%(documents)d documents, %(chunks)d chunks, of which %(embedded)d were embedded.", done)
    return done


def finish(name: str, collection_id: str, gone: Mapping[str, str], conn_id: str = VECTOR_STORE_CONN_ID) -> Finished:
    """Delete documents that are gone, and point the searches at this collection, if they still use an older one.

    It needs neither an embedding model nor the documents. What another run has indexed since stays.

    :param collection_id: the collection that was filled, of `Changes`.
    :param gone: that of `Changes`.
    :raises ValueError: nothing would be left in the collection.
    """
    with open_vector_store(conn_id) as store:
        collection = store.collection(collection_id)
        stored = collection.documents()
        removed = sorted(source for source, checksum in gone.items() if stored.get(source) == checksum)
        if len(removed) == len(stored):
            raise ValueError(
                "No document could be indexed, so the index stays as it is. See the log of index_documents."
            )
        collection.delete_documents(removed)
        chunks = collection.count()
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
        index_documents(name, changes.collection, changes.documents, conn_id)
    return finish(name, changes.collection, changes.gone, conn_id)


def _split(documents: Mapping[str, str], done: Indexed) -> Iterator[list[Chunk]]:
    """The chunks of one document after the other."""
    for source, checksum in documents.items():
        if file_checksum(source) != checksum:
            log.error("Left out: %s is missing on this worker, or is not the version that was listed.", source)
            done["differing"].append(source)
            continue
        try:
            chunks = split_document(read_document(source))
        except Exception as error:  # whatever it is, one document must not stop the others
            known = isinstance(error, UnreadableDocument)
            reason = str(error) if known else f"{source} cannot be used: {type(error).__name__}: {error}"
            done["unreadable"][source] = clean_text(reason)[:LONGEST_REASON]
            log.error("Left out: %s", done["unreadable"][source])
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
