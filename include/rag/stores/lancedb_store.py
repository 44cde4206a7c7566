"""LanceDB: embedded, in a folder or a bucket, safe for several writers at once.

Only `open_vector_store` imports this module, inside a task: LanceDB takes more than a second to import.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import lancedb  # noqa: TID253
import pyarrow as pa  # noqa: TID253
from lancedb.db import DBConnection  # noqa: TID253
from lancedb.index import FTS  # noqa: TID253
from lancedb.table import Table  # noqa: TID253
from tenacity import retry, retry_if_exception_message, stop_after_attempt, wait_random

from include.ai.embeddings import cosine
from include.rag.chunks import Chunk
from include.rag.stores.base import HIT_FIELDS, Hit, SearchQuery, complete_documents

ALIASES = "_aliases"
TOKENIZER = "icu/split"  # finds words in text without spaces, such as Chinese or Thai, and parts of identifiers

TEXT_COLUMNS = ("source", "title", "headings", "text", "format", "checksum", "document_checksum")
NUMBER_COLUMNS = ("position", "document_chunks")

# The texts of the RuntimeError that LanceDB raises when another commit came first.
LOST_RACE = r"(?is).*(commit conflict|incompatible transaction|concurrent writers|contention)"

# LanceDB resolves most such conflicts itself, but not if two create a table at once: the second replaces the first, and
# breaks operations on it. The decorated functions can be repeated, on the table as it is then.
_again_after_a_lost_race = retry(
    retry=retry_if_exception_message(match=LOST_RACE), stop=stop_after_attempt(10), wait=wait_random(0, 1), reraise=True
)


class LanceDBStore:
    """A `VectorStore` of LanceDB tables below `uri`; its aliases are a table of their own.

    :param uri: a folder or an object-storage URL.
    :param storage_options: credentials and endpoint of the object storage, as LanceDB takes them.
    """

    def __init__(self, uri: str, storage_options: dict[str, str]) -> None:
        self._db = lancedb.connect(uri, storage_options=storage_options or None)

    def collection(self, name: str) -> LanceDBCollection:
        return LanceDBCollection(self._db, name)

    def active(self, alias: str) -> str | None:
        aliases = _table(self._db, ALIASES)
        rows = [] if aliases is None else aliases.search().where(_one_of("alias", [alias])).to_list()
        return str(rows[0]["collection"]) if rows else None

    @_again_after_a_lost_race
    def activate(self, alias: str, name: str) -> None:
        before = self.active(alias)
        schema = pa.schema([_key("alias"), pa.field("collection", pa.string())])
        row = pa.Table.from_pylist([{"alias": alias, "collection": name}], schema=schema)
        aliases = self._db.create_table(ALIASES, schema=schema, exist_ok=True)
        aliases.merge_insert("alias").when_matched_update_all().when_not_matched_insert_all().execute(row)
        if before and before != name:
            with suppress(ValueError):  # another run was first
                self._db.drop_table(before)

    def close(self) -> None:
        """Do nothing: LanceDB holds nothing open."""


class LanceDBCollection:
    """A `VectorCollection` as one table."""

    def __init__(self, db: DBConnection, name: str) -> None:
        self._db = db
        self._name = name

    @_again_after_a_lost_race
    def create(self, dimension: int) -> None:
        table = _table(self._db, self._name)
        if table is None:
            fields: list[Any] = [
                _key("id"),
                *(pa.field(name, pa.string()) for name in TEXT_COLUMNS),
                *(pa.field(name, pa.int32()) for name in NUMBER_COLUMNS),
                pa.field("vector", pa.list_(pa.float32(), dimension)),
            ]
            table = self._db.create_table(self._name, schema=pa.schema(fields), exist_ok=True)
        if not any((index.index_details or {}).get("base_tokenizer") == TOKENIZER for index in table.list_indices()):
            table.create_index("text", config=FTS(base_tokenizer=TOKENIZER))

    def documents(self) -> dict[str, str]:
        columns = ["source", "document_checksum", "document_chunks"]
        table = _table(self._db, self._name)
        if table is None:
            return {}
        rows = table.search().select(columns).limit(None).to_arrow()
        return complete_documents(zip(*(rows[column].to_pylist() for column in columns), strict=True))

    def known_vectors(self, checksums: Sequence[str]) -> dict[str, list[float]]:
        table = _table(self._db, self._name)
        if table is None:
            return {}
        query = table.search().where(_one_of("checksum", checksums)).select(["checksum", "vector"])
        return {row["checksum"]: row["vector"] for row in query.limit(None).to_list()}

    @_again_after_a_lost_race
    def replace_documents(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        table = self._db.open_table(self._name)
        rows = [vars(chunk) | {"vector": vector} for chunk, vector in zip(chunks, vectors, strict=True)]
        # One commit: readers see either the old chunks of these documents or the new ones.
        (
            table.merge_insert("id")
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(_one_of("source", {chunk.source for chunk in chunks}))
            .execute(pa.Table.from_pylist(rows, schema=table.schema))
        )

    @_again_after_a_lost_race
    def delete_documents(self, sources: Sequence[str]) -> None:
        table = _table(self._db, self._name)
        if table is not None and sources:
            table.delete(_one_of("source", sources))

    def count(self) -> int:
        table = _table(self._db, self._name)
        return 0 if table is None else int(table.count_rows())

    def search(self, query: SearchQuery, vector: Sequence[float]) -> list[Hit]:
        table = _table(self._db, self._name)
        if table is None:
            return []
        found: Any
        if query.mode == "keyword":
            found = table.search(query.text, query_type="fts", fts_columns="text")
        elif query.mode == "hybrid":
            found = table.search(query_type="hybrid", fts_columns="text").vector(list(vector)).text(query.text)
        else:
            found = table.search(list(vector))
        if query.mode != "keyword":
            found = found.distance_type("cosine")
        if query.filters:
            found = found.where(_matches(query.filters), prefilter=True)
        rows = found.limit(query.limit).to_list()
        return [
            Hit(id=row["id"], score=cosine(vector, row["vector"]), **{name: row[name] for name in HIT_FIELDS})
            for row in rows
        ]

    def optimize(self) -> None:
        try:
            self._db.open_table(self._name).optimize()
        except RuntimeError as error:
            if not re.match(LOST_RACE, str(error)):  # else another writer is doing the same, which is enough
                raise


def _table(db: DBConnection, name: str) -> Table | None:
    try:
        return db.open_table(name)
    except ValueError:  # there is none
        return None


def _key(name: str) -> Any:
    """Define a column as the table's key, which keeps two writers from both inserting the same row."""
    return pa.field(name, pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"})


def _matches(filters: Mapping[str, Sequence[str]]) -> str:
    return " AND ".join(_one_of(name, values) for name, values in filters.items())


def _one_of(column: str, values: Iterable[str]) -> str:
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in sorted(set(values)))
    return f"{column} IN ({quoted})" if quoted else "false"
