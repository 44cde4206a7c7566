"""The knowledge base in the vector store: search in it. `include.rag.ingestion` fills it."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException

from include.ai.embeddings import Embedder
from include.rag.stores import VECTOR_STORE_CONN_ID, Hit, SearchQuery, VectorCollection, open_vector_store

COLLECTION = "KestrelHelp"

# Two texts that share this much of their words tell the same: one of them is enough.
NEAR_DUPLICATE = 0.85
# How many more hits than wanted are looked at, so that enough are left without near-duplicates.
SPARE_HITS = 3

log = logging.getLogger(__name__)


class Index(NamedTuple):
    """The collection that searches use, and the embedding model whose vectors it holds."""

    collection: VectorCollection
    embedder: Embedder


def collection_name(name: str, embedder: Embedder) -> str:
    """The collection of the index `name` for this model and its vectors' length: vectors of two models never mix."""
    model = f"{embedder.model_id}, {embedder.dimension}"
    readable = re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")[:60]
    return f"{name}_{readable}_{hashlib.sha256(model.encode()).hexdigest()[:8]}"


@contextmanager
def open_index(name: str, conn_id: str = VECTOR_STORE_CONN_ID) -> Iterator[Index | None]:
    """The index that was filled last under this name; None if there is none yet.

    :raises AirflowFailException: it was filled with another embedding model than that of now.
    """
    embedder = Embedder()
    with open_vector_store(conn_id) as store:
        active = store.active(name)
        if active is None:
            yield None
            return
        if active != collection_name(name, embedder):
            raise AirflowFailException(
                f"The index {name!r} holds vectors of another model ({active}) than that of the connection "
                f"{embedder.conn_id!r} ({embedder.model_id!r}, {embedder.dimension} numbers). "
                "Run rag_pipeline or asset_producer: they fill a new collection and put it in the old one's place."
            )
        yield Index(store.collection(active), embedder)


def indexed_documents(name: str, conn_id: str = VECTOR_STORE_CONN_ID) -> dict[str, str]:
    """The checksum of each document that searches can find, by name."""
    with open_vector_store(conn_id) as store:
        active = store.active(name)
        return store.collection(active).documents() if active else {}


def search(name: str, query: SearchQuery, min_score: float = -1.0, conn_id: str = VECTOR_STORE_CONN_ID) -> list[Hit]:
    """The best chunks for the query without near-duplicates, of at least `min_score`, best first.

    :param query: its vector may be empty: the text is embedded.
    :raises AirflowFailException: there is no index yet, or it is of another embedding model.
    """
    with open_index(name, conn_id) as index:
        if index is None:
            raise AirflowFailException(f"There is no index {name!r} yet: run rag_pipeline or asset_producer first.")
        hits = best_hits(index, replace(query, vector=index.embedder.embed_query(query.text)), min_score)
    log.info("Scores: %s", ", ".join(f"{hit.source} {hit.score:.2f}" for hit in hits) or "nothing found")
    return hits


def best_hits(index: Index, query: SearchQuery, min_score: float) -> list[Hit]:
    """As `search`, in an open index, with the query's own vector."""
    hits = index.collection.search(replace(query, limit=SPARE_HITS * query.limit))
    return without_near_duplicates([hit for hit in hits if hit.score >= min_score])[: query.limit]


def without_near_duplicates(hits: Sequence[Hit]) -> list[Hit]:
    """The hits that do not say the same as a better one, in their order."""
    kept: list[tuple[Hit, set[str]]] = []
    for hit in hits:
        words = set(re.findall(r"\w+", hit.text.partition("\n")[2].lower() or hit.text.lower()))
        if all(len(words & other) < NEAR_DUPLICATE * len(words | other) for _, other in kept):
            kept.append((hit, words))
    return [hit for hit, _ in kept]


def check_retrieval(name: str, questions: Sequence[dict[str, str]], limit: int) -> list[dict[str, str]] | None:
    """The questions whose document is not among the first `limit` passages; None if there is no index yet."""
    with open_index(name) as index:
        if index is None:
            return None
        vectors = index.embedder.embed_queries([each["question"] for each in questions])
        return [
            each
            for each, vector in zip(questions, vectors, strict=True)
            if each["document"]
            not in [hit.source for hit in index.collection.search(SearchQuery(each["question"], vector, limit))]
        ]
