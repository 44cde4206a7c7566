"""What every vector store can do.

A collection holds the vectors of one embedding model. The name that searches use is an alias, which points at one
collection at a time: a new one is filled beside it, and then takes its place in one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from include.rag.chunks import Chunk

FILTER_FIELDS = ("source", "title", "format")

SearchMode = Literal["vector", "keyword", "hybrid"]


@dataclass(frozen=True)
class SearchQuery:
    """What to search for.

    :param limit: how many hits, at most.
    :param mode: by `vector` (cosine), by `keyword` (BM25), or by both ranks fused (`hybrid`).
    :param filters: by field of FILTER_FIELDS the values of which a hit has one.
    :raises ValueError: the mode or a field of the filters is unknown, or a search by words has none.
    """

    text: str
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


HIT_FIELDS = ("source", "title", "headings", "position", "text")


class VectorCollection(Protocol):
    """Chunks and their vectors. A second writer at the same time does no harm: a chunk's id is its only row.

    One that does not exist reads as an empty one.
    """

    def create(self, dimension: int) -> None:
        """Create the collection, for vectors of this length, unless it is there."""

    def documents(self) -> dict[str, str]:
        """Return each stored document's checksum by source; an empty one where not all of its chunks are stored."""

    def known_vectors(self, checksums: Sequence[str]) -> dict[str, list[float]]:
        """Return the vectors of those of these chunks, by chunk checksum, that are stored somewhere."""

    def replace_documents(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        """Store these documents, each with all its chunks, in place of what the store has of the same documents."""

    def delete_documents(self, sources: Sequence[str]) -> None:
        """Remove all chunks of these documents."""

    def count(self) -> int:
        """Return the number of stored chunks."""

    def search(self, query: SearchQuery, vector: Sequence[float]) -> list[Hit]:
        """Find the best chunks for the query, best first. All that was stored before can be found.

        :param vector: the embedding of the query's text. It finds in vector and hybrid search, and gives each hit its
            score.
        """

    def optimize(self) -> None:
        """Bring files and indexes into the shape that searches are fastest with; searches are right without it."""


class VectorStore(Protocol):
    """Collections and aliases. A name is letters, digits and underscores, and begins with a capital letter."""

    def collection(self, name: str) -> VectorCollection:
        """Return the collection of this name, which need not exist yet."""

    def active(self, alias: str) -> str | None:
        """Return the name of the collection that the alias points at; None if there is none."""

    def activate(self, alias: str, name: str) -> None:
        """Point the alias at the collection, in one step, and delete the collection that it pointed at before."""

    def close(self) -> None:
        """Close connections."""


def complete_documents(rows: Iterable[tuple[str, str, int]]) -> dict[str, str]:
    """Compute `VectorCollection.documents` from source, document checksum and number of chunks of each stored chunk."""
    documents: dict[str, str] = {}
    for (source, checksum, chunks), stored in Counter(rows).items():
        whole = stored == chunks and source not in documents
        documents[source] = checksum if whole else ""
    return documents
