"""Vector stores behind one interface, chosen by the type of the connection `vector_store_default`.

    with open_vector_store() as store:
        for hit in store.collection(store.active("KestrelHelp")).search(SearchQuery("reset link", vector, limit=3)):
            ...

A collection holds the vectors of one embedding model. The name that searches use is an alias, which points at one
collection at a time: a new one is filled beside it, and then takes its place in one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from airflow.providers.common.compat.sdk import AirflowFailException

from include.rag.documents import Chunk

VECTOR_STORE_CONN_ID = "vector_store_default"

# What a search can be restricted to, and what a hit tells of its chunk.
FILTER_FIELDS = ("source", "title", "format")

SearchMode = Literal["vector", "keyword", "hybrid"]


@dataclass(frozen=True)
class SearchQuery:
    """What to search for.

    :param text: the words, for keyword and hybrid search.
    :param vector: the embedding of the text. It finds in vector and hybrid search, and gives each hit its score.
    :param limit: how many hits, at most.
    :param mode: by `vector` (cosine), by `keyword` (BM25), or by both ranks fused (`hybrid`).
    :param filters: by field of FILTER_FIELDS the values of which a hit has one.
    :raises ValueError: the mode or a field of the filters is unknown, or a search by words has none.
    """

    text: str
    vector: Sequence[float]
    limit: int
    mode: SearchMode = "vector"
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in ("vector", "keyword", "hybrid"):
            raise ValueError(f"Unknown search mode {self.mode!r}: it is vector, keyword or hybrid.")
        if self.mode != "vector" and not self.text.strip():
            raise ValueError(f"A {self.mode} search needs words to search for.")
        if unknown := set(self.filters) - set(FILTER_FIELDS):
            raise ValueError(f"No filter for {', '.join(sorted(unknown))}: it is one of {', '.join(FILTER_FIELDS)}.")


@dataclass(frozen=True)
class Hit:
    """A chunk that a search found.

    `score` is the cosine similarity to the query's vector, from -1 to 1, in every mode and store. Hits come in the
    order of their mode: BM25 and fused ranks tell which chunk is better, but not whether one is good.
    """

    id: str
    source: str
    title: str
    headings: str
    position: int
    text: str
    score: float


class VectorCollection(Protocol):
    """Chunks and their vectors. A second writer at the same time does no harm: a chunk's id is its only row."""

    def create(self, dimension: int) -> None:
        """Create the collection, for vectors of this length, unless it is there."""

    def documents(self) -> dict[str, str]:
        """The checksum of each stored document by source; an empty one where not all of its chunks are stored."""

    def known_vectors(self, checksums: Sequence[str]) -> dict[str, list[float]]:
        """The vectors of those of these chunks, by chunk checksum, that are stored somewhere."""

    def replace_documents(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        """Store these documents, each with all its chunks, in place of what the store has of the same documents."""

    def delete_documents(self, sources: Sequence[str]) -> None:
        """Remove all chunks of these documents."""

    def count(self) -> int:
        """The number of stored chunks."""

    def search(self, query: SearchQuery) -> list[Hit]:
        """The best chunks for the query, best first. All that was stored before can be found."""

    def optimize(self) -> None:
        """Bring files and indexes into the shape that searches are fastest with; searches are right without it."""


class VectorStore(Protocol):
    """Collections, and the aliases that searches know them by. A name is letters, digits and underscores, and begins
    with a capital letter."""

    def collection(self, name: str) -> VectorCollection:
        """The collection of this name, which need not exist yet."""

    def active(self, alias: str) -> str | None:
        """The name of the collection that the alias points at; None if there is none."""

    def activate(self, alias: str, name: str) -> None:
        """Point the alias at the collection, in one step, and delete the collection that it pointed at before."""

    def close(self) -> None:
        """Give up connections."""


@contextmanager
def open_vector_store(conn_id: str = VECTOR_STORE_CONN_ID) -> Iterator[VectorStore]:
    """The store of the connection `conn_id`, closed at the end of the block.

    :raises AirflowFailException: the connection's type is none of the supported stores, or its key is refused.
    :raises AirflowException: the store does not answer.
    """
    from airflow.sdk import Connection

    conn = Connection.get(conn_id)
    store: VectorStore
    if conn.conn_type == "lancedb":
        from include.rag.stores.lancedb_store import LanceDBStore

        store = LanceDBStore(conn.host, conn.extra_dejson)
    elif conn.conn_type == "weaviate":
        from include.rag.stores.weaviate_store import WeaviateStore

        store = WeaviateStore(conn_id)
    else:
        raise AirflowFailException(
            f"Connection {conn_id!r} has the type {conn.conn_type!r}; supported are 'lancedb' "
            "(host = a folder or an s3:// URL) and 'weaviate' (see .env.example)."
        )
    try:
        yield store
    finally:
        store.close()


def complete_documents(rows: Iterable[tuple[str, str, int]]) -> dict[str, str]:
    """`VectorCollection.documents`, given source, document checksum and number of chunks of each stored chunk."""
    found = Counter(rows)
    documents: dict[str, str] = {}
    for (source, checksum, chunks), number in found.items():
        whole = number == chunks and source not in documents
        documents[source] = checksum if whole else ""
    return documents


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """The cosine similarity of two vectors, from -1 to 1; 0 if one of them is zero."""
    import numpy as np

    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b)) / length if length else 0.0
