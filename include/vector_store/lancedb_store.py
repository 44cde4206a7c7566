"""LanceDB: embedded, in a folder or a bucket, safe for several writers at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from include.documents import Chunk
from include.vector_store import Hit

if TYPE_CHECKING:
    from lancedb.table import Table


class LanceDBStore:
    """A `VectorStore` in the LanceDB table `collection` below `uri`.

    :param uri: a folder or an object-storage URL.
    :param storage_options: credentials and endpoint of the object storage, as LanceDB takes them.
    """

    def __init__(self, uri: str, collection: str, storage_options: dict[str, str] | None = None) -> None:
        import lancedb

        self._db = lancedb.connect(uri, storage_options=storage_options or None)
        self._collection = collection

    def create(self, dimension: int) -> None:
        import pyarrow as pa

        if self._table() is not None:
            return
        # As the declared key of the table, the id keeps two writers from both inserting the same chunk.
        fields: list[Any] = [
            pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"}),
            *(pa.field(name, pa.string()) for name in ("source", "title", "text", "document_checksum")),
            pa.field("vector", pa.list_(pa.float32(), dimension)),
        ]
        self._db.create_table(self._collection, schema=pa.schema(fields), exist_ok=True)

    def checksums(self) -> dict[str, str]:
        table = self._table()
        if table is None:
            return {}
        rows = table.search().select(["source", "document_checksum"]).limit(None).to_list()
        return {row["source"]: row["document_checksum"] for row in rows}

    def replace_documents(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        if not chunks:
            return
        import pyarrow as pa

        table = self._db.open_table(self._collection)
        rows = [
            {
                "id": chunk.id,
                "source": chunk.source,
                "title": chunk.title,
                "text": chunk.text,
                "document_checksum": chunk.document_checksum,
                "vector": list(vector),
            }
            for chunk, vector in zip(chunks, vectors, strict=True)
        ]
        # One commit: readers see either the old chunks of these documents or the new ones.
        (
            table.merge_insert("id")
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(_source_in({chunk.source for chunk in chunks}))
            .execute(pa.Table.from_pylist(rows, schema=table.schema))
        )

    def delete_documents(self, sources: Iterable[str]) -> None:
        table, gone = self._table(), set(sources)
        if table is not None and gone:
            table.delete(_source_in(gone))

    def count(self) -> int:
        table = self._table()
        return 0 if table is None else int(table.count_rows())

    def search(self, vector: Sequence[float], limit: int) -> list[Hit]:
        table = self._table()
        if table is None:
            return []
        query: Any = table.search(list(vector))
        rows = query.distance_type("cosine").limit(limit).to_list()
        return [Hit(row["id"], row["source"], row["title"], row["text"], score=1 - row["_distance"]) for row in rows]

    def _table(self) -> Table | None:
        if self._collection not in self._db.list_tables().tables:
            return None
        return self._db.open_table(self._collection)


def _source_in(sources: Iterable[str]) -> str:
    quoted = ", ".join("'" + source.replace("'", "''") + "'" for source in sorted(sources))
    return f"source IN ({quoted})"
