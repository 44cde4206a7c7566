"""Keep the index of the knowledge base in step with its documents, in three steps that can be tasks.

`find_changes` lists the documents and decides what to do, `index_documents` indexes what is new, `finish_index` deletes
what was removed, and switches searches to a new collection once it is full. Only the list decides: each step may run on
another worker, whose folder may be older or empty. After a crash, or in parallel with another run, a run indexes only
what is still missing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from math import ceil
from typing import TypedDict

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from include.ai.embeddings import Embedder
from include.common.text import clean_text
from include.rag import search
from include.rag.bounded import UnreadableDocument
from include.rag.chunks import Chunk, split_document
from include.rag.documents import NotAsListed, listed_documents, location, read_document
from include.rag.stores.base import VectorCollection
from include.rag.stores.open import VECTOR_STORE_CONN_ID, open_vector_store

# Chunks that are embedded and written together: about 50 MB of Python floats with 1,536 numbers each.
CHUNKS_AT_ONCE = 1024
# A folder that lacks more than this share of the indexed documents, and has no new one, was not deployed completely.
MOST_GONE = 0.5
LONGEST_REASON = 500

log = logging.getLogger(__name__)


class Changes(TypedDict):
    """What there is to do in `collection`, that of the current embedding model, as checksums by document.

    `documents` are the listed ones that the collection lacks or has in another version; `gone` are the stored ones that
    are no longer listed. `in_step` means that there are none of either, and that searches use the collection.
    """

    collection: str
    documents: dict[str, str]
    gone: dict[str, str]
    in_step: bool


class Indexed(TypedDict):
    """The result of `index_documents`.

    `embedded` is how many of the chunks had to be embedded. Two kinds of documents were left out: `unreadable` has the
    reason for each, `differing` names those that are not the listed version. `incomplete` says what is missing from
    indexed documents, such as single pages of a PDF.
    """

    documents: int
    chunks: int
    embedded: int
    unreadable: dict[str, str]
    incomplete: dict[str, str]
    differing: list[str]


class Finished(TypedDict):
    """The index after a run. `removed` names the documents that were deleted from it."""

    collection: str
    chunks: int
    removed: list[str]


def find_changes(conn_id: str = VECTOR_STORE_CONN_ID) -> Changes:
    """Compare the documents with the index, and create its collection if it does not exist.

    :raises ValueError: there are no documents, or far too few: a folder that was not deployed, or not completely, must
        not empty the index. A retry may run on a worker that has them.
    """
    listed = listed_documents()
    embedder = Embedder()
    with open_vector_store(conn_id) as store:
        name = search.collection_name(embedder)
        collection = store.collection(name)
        collection.create(embedder.dimension)
        stored = collection.documents()
        active = store.active(search.INDEX)
        indexed = stored if active == name else store.collection(active or name).documents()
    _check_complete(listed.keys(), indexed.keys())
    changed = {source: checksum for source, checksum in listed.items() if stored.get(source) != checksum}
    gone = {source: checksum for source, checksum in stored.items() if source not in listed}
    log.info("%d of %d documents are new or changed, %d were removed.", len(changed), len(listed), len(gone))
    in_step = not changed and not gone and active == name
    return {"collection": name, "documents": changed, "gone": gone, "in_step": in_step}


def _check_complete(listed: Set[str], indexed: Set[str]) -> None:
    missing = indexed - listed
    if listed <= indexed and len(missing) > MOST_GONE * len(indexed):
        raise ValueError(
            f"{location()} lacks {len(missing)} of the {len(indexed)} documents of the index, among them "
            f"{min(missing)}, and has no other document: it was probably not deployed completely. The index stays as "
            "it is. Deploy all documents, or set GENAI_KNOWLEDGE_BASE to their bucket, or to their folder on every "
            "worker. If so many were deleted on purpose, raise MOST_GONE in include/rag/ingestion.py."
        )


def share_out(changes: Changes, most: int) -> list[Changes]:
    """Divide the documents evenly among as few tasks as possible, of at most `most` each.

    :return: a share for each task; none if the index is in step. Only the first has what is `gone`.
    """
    if changes["in_step"]:
        return []
    items = list(changes["documents"].items())
    tasks = max(1, ceil(len(items) / most))
    size = ceil(len(items) / tasks)
    parts = [dict(items[at * size : (at + 1) * size]) for at in range(tasks)]
    return [{**changes, "documents": part, "gone": {} if at else changes["gone"]} for at, part in enumerate(parts)]


def index_documents(collection_name: str, documents: Mapping[str, str], conn_id: str = VECTOR_STORE_CONN_ID) -> Indexed:
    """Chunk, embed and store these documents in place of their earlier versions.

    A chunk whose text is already in the index is not embedded again, even if it has moved in its document. A document
    that cannot be used, or is not the listed version (it was edited since, or this worker has an older folder), is left
    out with an error in the log; the index keeps its last version.

    :param collection_name: `Changes.collection`.
    :param documents: all or some of `Changes.documents`.
    :raises AirflowFailException: the collection is for another embedding model than the current one.
    :raises AirflowException: documents are not the listed versions, and a new collection must not replace the old one
        without them. A retry may run on a worker that has them.
    """
    done = Indexed(documents=0, chunks=0, embedded=0, unreadable={}, incomplete={}, differing=[])
    embedder = Embedder()
    if search.collection_name(embedder) != collection_name:
        raise AirflowFailException(
            f"The embedding model of {embedder.conn_id!r} has changed since this run began: start a new run."
        )
    with open_vector_store(conn_id) as store:
        collection = store.collection(collection_name)
        for chunks in _in_groups(_split_documents(documents, done)):
            done["chunks"] += len(chunks)
            done["embedded"] += _store(chunks, collection, embedder)
        if done["differing"] and store.active(search.INDEX) not in (None, collection_name):
            raise AirflowException(
                f"{len(done['differing'])} documents, among them {done['differing'][0]}, are not as find_changes "
                "listed them (see the log). The new collection must not replace the old one without them: start a new "
                "run."
            )
    log.info("%(documents)d documents, %(chunks)d chunks, of which %(embedded)d were embedded.", done)
    return done


def finish_index(collection_name: str, gone: Mapping[str, str], conn_id: str = VECTOR_STORE_CONN_ID) -> Finished:
    """Delete documents that are no longer listed, and switch searches to this collection if they use an older one.

    This needs neither an embedding model nor the documents. What another run has indexed since then stays.

    :param collection_name: `Changes.collection`, filled.
    :param gone: `Changes.gone`.
    :raises ValueError: nothing would be left in the collection.
    """
    with open_vector_store(conn_id) as store:
        collection = store.collection(collection_name)
        stored = collection.documents()
        removed = sorted(source for source, checksum in gone.items() if stored.get(source) == checksum)
        if len(removed) == len(stored):
            raise ValueError(
                "No document could be indexed, so the index stays as it is. See the log of index_documents."
            )
        collection.delete_documents(removed)
        chunks = collection.count()
        collection.optimize()
        if store.active(search.INDEX) != collection_name:
            store.activate(search.INDEX, collection_name)
            log.info("Searches now use the collection %s.", collection_name)
    log.info("%d documents removed.", len(removed))
    return {"collection": collection_name, "chunks": chunks, "removed": removed}


def refresh_index(conn_id: str = VECTOR_STORE_CONN_ID) -> Finished:
    """Take all three steps, one after the other. A retry does only what is still missing."""
    changes = find_changes(conn_id)
    if changes["documents"]:
        index_documents(changes["collection"], changes["documents"], conn_id)
    return finish_index(changes["collection"], changes["gone"], conn_id)


def _split_documents(documents: Mapping[str, str], done: Indexed) -> Iterator[list[Chunk]]:
    """Yield the chunks of each document, and note in `done` what was left out."""
    for source, checksum in documents.items():
        try:
            document = read_document(source, checksum)
            chunks = split_document(document)
        except NotAsListed as error:
            log.error("Left out: %s", error)
            done["differing"].append(source)
        except AirflowException:  # the bucket does not answer: a retry may help
            raise
        except Exception as error:  # one document must not stop the others
            known = isinstance(error, UnreadableDocument)
            reason = str(error) if known else f"{source} cannot be used: {type(error).__name__}: {error}"
            done["unreadable"][source] = clean_text(reason)[:LONGEST_REASON]
            log.error("Left out: %s", done["unreadable"][source])
        else:
            done["documents"] += 1
            if document.notes:
                done["incomplete"][source] = "; ".join(document.notes)[:LONGEST_REASON]
                log.warning("Incomplete: %s: %s", source, done["incomplete"][source])
            yield chunks


def _in_groups(documents: Iterator[list[Chunk]]) -> Iterator[list[Chunk]]:
    """Join whole documents until they have CHUNKS_AT_ONCE chunks."""
    group: list[Chunk] = []
    for chunks in documents:
        group += chunks
        if len(group) >= CHUNKS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _store(chunks: list[Chunk], collection: VectorCollection, embedder: Embedder) -> int:
    """Store the chunks, and return how many of them had to be embedded."""
    vectors = collection.known_vectors([chunk.checksum for chunk in chunks])
    new = {chunk.checksum: chunk.text for chunk in chunks if chunk.checksum not in vectors}
    vectors |= zip(new, embedder.embed_documents(list(new.values())), strict=True)
    collection.replace_documents(chunks, [vectors[chunk.checksum] for chunk in chunks])
    return len(new)
