"""The interface of every vector store.

A collection holds the vectors of one embedding model. The name that searches use is an alias, which points at one
collection at a time. A new collection is filled beside the old one, and then replaces it in one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from include.rag.chunks import Chunk

FILTER_FIELDS = ("source", "title", "format")

SearchMode = Literal["vector", "keyword", "hybrid"]


@dataclass(frozen=True)
class SearchQuery:
    """What to search for.

    :param limit: the most hits to return.
    :param mode: by `vector` (cosine), by `keyword` (BM25), or by both ranks fused (`hybrid`).
    :param filters: by field of FILTER_FIELDS, the values of which a hit has one.
    :raises ValueError: the mode or a field of the filters is unknown, or a search by words has none.
    """

    text: str
    limit: int
    mode: SearchMode = "vector"
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in get_args(SearchMode):
            raise ValueError(f"Unknown search mode {self.mode!r}: it is vector, keyword or hybrid.")
        if self.mode != "vector" and not self.text.strip():
            raise ValueError(f"A {self.mode} search needs words to search for.")
        if unknown := set(self.filters) - set(FILTER_FIELDS):
            raise ValueError(f"No filter for {', '.join(sorted(unknown))}: it is one of {', '.join(FILTER_FIELDS)}.")


@dataclass(frozen=True)
class Hit:
    """A chunk that a search found.

    `score` is the cosine similarity to the query's vector, from -1 to 1, in every mode and store. Hits come in the
    order of their mode: BM25 and fused ranks say which chunk is better, but not whether one is good.
    """

    id: str
    source: str
    title: str
    headings: str
    position: int
    text: str
    score: float


HIT_FIELDS = ("source", "title", "headings", "position", "text")


class VectorCollection(Protocol):
    """Chunks and their vectors. Several may write at the same time, as there is one row for a chunk's id.

    A collection that does not exist reads as an empty one.
    """

    def create(self, dimension: int) -> None:
        """Create the collection, for vectors of this length, if it does not exist."""

    def documents(self) -> dict[str, str]:
        """Return the checksum of each stored document by source; "" if not all of its chunks are stored."""

    def known_vectors(self, checksums: Sequence[str]) -> dict[str, list[float]]:
        """Return the vectors, by chunk checksum, of those of these chunks that are stored in any document."""

    def replace_documents(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        """Store these documents, each with all its chunks, in place of their earlier versions."""

    def delete_documents(self, sources: Sequence[str]) -> None:
        """Remove all chunks of these documents."""

    def count(self) -> int:
        """Return the number of stored chunks."""

    def search(self, query: SearchQuery, vector: Sequence[float]) -> list[Hit]:
        """Find the best chunks for the query, best first. All that was stored before can be found.

        :param vector: the embedding of the query's text, for vector and hybrid search, and for each hit's score.
        """

    def optimize(self) -> None:
        """Reorganize files and indexes so that searches are fastest; results do not depend on it."""


class VectorStore(Protocol):
    """Collections and aliases. A name has letters, digits and underscores, and begins with a capital letter."""

    def collection(self, name: str) -> VectorCollection:
        """Return the collection of this name, which may not exist yet."""

    def active(self, alias: str) -> str | None:
        """Return the name of the collection that the alias points at, if any."""

    def activate(self, alias: str, name: str) -> None:
        """Point the alias at the collection, in one step, and delete the one that it pointed at before."""

    def close(self) -> None:
        """Close connections."""


def complete_documents(rows: Iterable[tuple[str, str, int]]) -> dict[str, str]:
    """Compute `VectorCollection.documents` from source, document checksum and number of chunks of each stored chunk."""
    documents: dict[str, str] = {}
    for (source, checksum, chunks), stored in Counter(rows).items():
        whole = stored == chunks and source not in documents
        documents[source] = checksum if whole else ""
    return documents
