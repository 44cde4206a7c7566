"""Search in the knowledge base, which `include.rag.ingestion` keeps in the vector store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from airflow.providers.common.compat.sdk import AirflowFailException
from opentelemetry.trace import SpanKind

from include.ai.embeddings import Embedder
from include.rag.stores.base import Hit, SearchQuery, VectorCollection
from include.rag.stores.open import VECTOR_STORE_CONN_ID, open_vector_store

try:
    from include.rag import rerank as reranking
except ImportError:  # a copied pattern may lack it
    reranking = None  # type: ignore[assignment]
try:
    from include.common import spans
except ImportError:
    spans = None  # type: ignore[assignment]

# The alias of the collection that searches use, and the beginning of the names of all its collections.
INDEX = "KnowledgeBase"

# Two texts that share this much of their words count as the same.
NEAR_DUPLICATE = 0.85
# Read this many times more hits than wanted, so that enough are left without near-duplicates.
SPARE_HITS = 3


def collection_name(embedder: Embedder) -> str:
    """Name the collection for this model and its vectors' length: vectors of two models never mix."""
    model = f"{embedder.model_id}, {embedder.dimension}"
    readable = re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")[:60]
    return f"{INDEX}_{readable}_{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def indexed_documents() -> dict[str, str]:
    """Return the checksum of each document that searches can find, by name."""
    with open_vector_store() as store:
        active = store.active(INDEX)
        return store.collection(active).documents() if active else {}


def search(
    queries: Sequence[SearchQuery],
    min_score: float = -1.0,
    conn_id: str = VECTOR_STORE_CONN_ID,
    rerank_conn_id: str | None = None,
) -> list[list[Hit]]:
    """Find for each query the best chunks of at least `min_score` (cosine), best first, without near-duplicates.

    A text that several queries share is embedded once.

    :param rerank_conn_id: the connection to a model that re-ranks more hits, of which the best are returned.
    :raises AirflowFailException: there is no index yet, or it is that of another embedding model than the current one.
    """
    if rerank_conn_id:
        if reranking is None:
            raise AirflowFailException("Re-ranking needs the layer rerank: copy include/rag/rerank.py as well.")
        wider = [replace(query, limit=reranking.hits_to_read(query.limit)) for query in queries]
        found = reranking.rerank(rerank_conn_id, [query.text for query in queries], search(wider, min_score, conn_id))
        return [hits[: query.limit] for query, hits in zip(queries, found, strict=True)]
    embedder = Embedder()
    with open_vector_store(conn_id) as store:
        active = store.active(INDEX)
        if active is None:
            raise AirflowFailException(f"{conn_id!r} has no index {INDEX!r} yet: run rag_pipeline or asset_producer.")
        if active != collection_name(embedder):
            raise AirflowFailException(
                f"The index {INDEX!r} holds vectors of another model ({active}) than that of the connection "
                f"{embedder.conn_id!r} ({embedder.model_id!r}, {embedder.dimension} numbers). "
                "Run rag_pipeline or asset_producer: they fill a new collection and put it in the old one's place."
            )
        texts = list(dict.fromkeys(query.text for query in queries))
        vectors = dict(zip(texts, embedder.embed_queries(texts), strict=True))
        collection = store.collection(active)
        return [best_hits(collection, query, vectors[query.text], min_score) for query in queries]


def best_hits(collection: VectorCollection, query: SearchQuery, vector: Sequence[float], min_score: float) -> list[Hit]:
    """Find the query's hits in an open collection, as `search` does.

    :param vector: the embedding of the query's text.
    """
    kept: list[tuple[Hit, set[str]]] = []
    attributes = {"db.operation.name": query.mode, "db.collection.name": INDEX, "db.query.limit": query.limit}
    tracing = spans.span(f"search {INDEX}", attributes, SpanKind.CLIENT) if spans else nullcontext()
    with tracing as searching:
        hits = collection.search(replace(query, limit=SPARE_HITS * query.limit), vector)
        if searching:
            searching.set_attribute("db.response.returned_rows", len(hits))
    for hit in hits:
        text = hit.text.partition("\n")[2] or hit.text  # without its headings, which copies may not share
        words = set(re.findall(r"\w+", text.lower()))
        is_new = all(len(words & other) < NEAR_DUPLICATE * len(words | other) for _, other in kept)
        if is_new and hit.score >= min_score:
            kept.append((hit, words))
    return [hit for hit, _ in kept[: query.limit]]
