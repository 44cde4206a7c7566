"""Vector stores behind one interface, chosen by the type of the connection `vector_store_default`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from airflow.providers.common.compat.sdk import AirflowFailException

from include.documents import Chunk

VECTOR_STORE_CONN_ID = "vector_store_default"


@dataclass(frozen=True)
class Hit:
    """A chunk that a search found. `score` is the cosine similarity to the query, from -1 to 1."""

    id: str
    source: str
    title: str
    text: str
    score: float


class VectorStore(Protocol):
    """What a RAG pipeline needs of a vector store. Before `create`, a collection reads as an empty one."""

    def create(self, dimension: int) -> None:
        """Create the collection, for vectors of this length, unless it is there. Not for several at once."""

    def checksums(self) -> dict[str, str]:
        """The checksum of each stored document, by source."""

    def replace_documents(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        """Store these documents' chunks in place of what the store has of the same documents."""

    def delete_documents(self, sources: Iterable[str]) -> None:
        """Remove all chunks of these documents."""

    def count(self) -> int:
        """The number of stored chunks."""

    def search(self, vector: Sequence[float], limit: int) -> list[Hit]:
        """The `limit` chunks nearest to `vector`, best first."""


def open_vector_store(collection: str, conn_id: str = VECTOR_STORE_CONN_ID) -> VectorStore:
    """Open the collection in the store of the connection `conn_id`.

    :raises AirflowFailException: the connection's type is none of the supported stores.
    """
    from airflow.sdk import Connection

    conn = Connection.get(conn_id)
    if conn.conn_type == "lancedb":
        from include.vector_store.lancedb_store import LanceDBStore

        return LanceDBStore(conn.host, collection, conn.extra_dejson)
    raise AirflowFailException(
        f"Connection {conn_id!r} has the type {conn.conn_type!r}; supported is 'lancedb' "
        "(host = a folder or an s3:// URL)."
    )
