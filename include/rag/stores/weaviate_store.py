"""Weaviate, through the provider's `WeaviateHook` (connection type `weaviate`).

Only `open_vector_store` imports this module, inside a task: Weaviate's client takes more than a second to import.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.providers.weaviate.hooks.weaviate import WeaviateHook
from weaviate import WeaviateClient  # noqa: TID253
from weaviate.classes.config import Configure, DataType, Property, Tokenization, VectorDistances  # noqa: TID253
from weaviate.classes.data import DataObject  # noqa: TID253
from weaviate.classes.query import Filter, HybridFusion  # noqa: TID253
from weaviate.collections import Collection  # noqa: TID253
from weaviate.exceptions import (  # noqa: TID253
    AuthenticationFailedError,
    InsufficientPermissionsError,
    UnexpectedStatusCodeError,
    WeaviateBaseError,
    WeaviateBatchError,
    WeaviateInsertManyAllFailedError,
)

from include.ai.embeddings import cosine
from include.common.shown import shown_text
from include.rag.chunks import Chunk
from include.rag.stores.base import HIT_FIELDS, Hit, SearchQuery, complete_documents

# How long to wait for a server that is starting.
READY_TIMEOUT_S = 60.0
READY_PAUSE_S = 1.0

# Objects in one request: with 3,072 numbers each they are 3 MB, and a small server takes 10 MB.
BATCH_OBJECTS = 256
BATCH_DOCUMENTS = 64
BATCH_TRIES = 4
FIRST_PAUSE_S = 0.5

# The most that a server returns or deletes at once (the default of its QUERY_MAXIMUM_RESULTS).
MAXIMUM_RESULTS = 10_000

# A word of a script that is written without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese. Each of Weaviate's
# tokenizers for such words is for one language and has to be enabled on the server; none is for Thai.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")

VECTOR = "default"
TEXT_PROPERTIES = ("source", "title", "format", "checksum", "document_checksum")  # compared as a whole
SHOWN = ("headings", "text")
NUMBER_PROPERTIES = ("position", "document_chunks")

log = logging.getLogger(__name__)


def connect(conn_id: str) -> WeaviateClient:
    """Connect to the server once it is ready.

    :raises AirflowFailException: the key is refused.
    :raises AirflowException: the server is not ready in time.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        client = None
        try:
            client = WeaviateHook(conn_id).get_conn()
            client.collections.exists("Ready")  # the first request that needs the key
            return client
        except (WeaviateBaseError, OSError) as error:
            if client is not None:
                client.close()
            refused = isinstance(error, (AuthenticationFailedError, InsufficientPermissionsError))
            if refused or (isinstance(error, UnexpectedStatusCodeError) and error.status_code == 401):
                raise AirflowFailException(
                    f"Connection {conn_id!r}: Weaviate refused the key. Set extra.api_key to one that may read, write "
                    "and create collections and aliases."
                ) from None
            if time.monotonic() > deadline:
                raise AirflowException(
                    f"Connection {conn_id!r}: Weaviate is not ready after {READY_TIMEOUT_S:.0f} s "
                    f"({type(error).__name__}). Is it running, and are the connection's host, port, "
                    "extra.grpc_host and extra.grpc_port right?"
                ) from error
            log.info("Connection %r: Weaviate is not ready yet (%s).", conn_id, type(error).__name__)
        time.sleep(READY_PAUSE_S)


class WeaviateStore:
    """A `VectorStore` of Weaviate collections, with Weaviate's own aliases.

    :param conn_id: an Airflow connection of type `weaviate`.
    :raises AirflowException: see `connect`.
    """

    def __init__(self, conn_id: str) -> None:
        self._client = connect(conn_id)

    def collection(self, name: str) -> WeaviateCollection:
        return WeaviateCollection(self._client, name)

    def active(self, alias: str) -> str | None:
        found = self._client.alias.get(alias_name=alias)
        return found.collection if found else None

    def activate(self, alias: str, name: str) -> None:
        before = self.active(alias)
        if before is None:
            try:
                self._client.alias.create(alias_name=alias, target_collection=name)
            except UnexpectedStatusCodeError:  # another run was first
                if self.active(alias) is None:
                    raise
        if self.active(alias) != name:
            self._client.alias.update(alias_name=alias, new_target_collection=name)
        if before and before != name:
            self._client.collections.delete(before)

    def close(self) -> None:
        self._client.close()


class WeaviateCollection:
    """A `VectorCollection` with explicit properties and vectors that come from outside."""

    def __init__(self, client: WeaviateClient, name: str) -> None:
        self._client = client
        self._name = name
        self._collection: Collection[Any, Any] = client.collections.get(name)

    def create(self, dimension: int) -> None:
        if self._exists():
            return
        try:
            self._client.collections.create(self._name, **schema())
        except UnexpectedStatusCodeError:  # another run was first
            if not self._exists():
                raise

    def documents(self) -> dict[str, str]:
        names = ["source", "document_checksum", "document_chunks"]
        if not self._exists():
            return {}
        found = self._collection.iterator(return_properties=names, cache_size=1000)
        return complete_documents(tuple(obj.properties[name] for name in names) for obj in found)

    def known_vectors(self, checksums: Sequence[str]) -> dict[str, list[float]]:
        known: dict[str, list[float]] = {}
        for group in _groups(list(dict.fromkeys(checksums)), BATCH_OBJECTS):
            found: Any = self._collection.query.fetch_objects(
                filters=_matches({"checksum": group}),
                limit=2 * BATCH_OBJECTS,
                return_properties=["checksum"],
                include_vector=True,
            )
            known |= {str(obj.properties["checksum"]): list(obj.vector[VECTOR]) for obj in found.objects}
        return known

    def replace_documents(self, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        for group in _groups(list(zip(chunks, vectors, strict=True)), BATCH_OBJECTS):
            objects = [
                DataObject(uuid=chunk.id, properties=_properties(chunk), vector={VECTOR: list(vector)})
                for chunk, vector in group
            ]
            insert_all(self._collection, objects)
        # Ids stand for positions: what is left of earlier versions are positions that no longer exist.
        versions: dict[str, set[str]] = {}
        for chunk in chunks:
            versions.setdefault(chunk.source, set()).add(chunk.document_checksum)
        for group in _groups(sorted(versions), BATCH_DOCUMENTS):
            earlier_versions = [
                Filter.by_property("source").equal(source)
                & Filter.by_property("document_checksum").contains_none(sorted(versions[source]))
                for source in group
            ]
            self._delete(Filter.any_of(earlier_versions))

    def delete_documents(self, sources: Sequence[str]) -> None:
        if self._exists():
            for group in _groups(sorted(sources), BATCH_OBJECTS):
                self._delete(_matches({"source": group}))

    def _delete(self, condition: Any) -> None:
        while True:
            done = self._collection.data.delete_many(where=condition)
            if done.failed:
                raise AirflowException(f"{done.failed} chunks could not be deleted from {self._name}.")
            if done.matches < MAXIMUM_RESULTS:
                return

    def count(self) -> int:
        return int(self._collection.aggregate.over_all().total_count or 0) if self._exists() else 0

    def search(self, query: SearchQuery, vector: Sequence[float]) -> list[Hit]:
        if not self._exists():
            return []
        find = self._collection.query
        by_words: dict[str, Any] = {"query": _words(query.text), "query_properties": ["words"]}
        shared: dict[str, Any] = {
            "limit": query.limit,
            "filters": _matches(query.filters),
            "return_properties": list(HIT_FIELDS),
            "include_vector": True,
        }
        if query.mode == "keyword":
            found = find.bm25(**by_words, **shared)
        elif query.mode == "hybrid":
            fusion = HybridFusion.RANKED
            found = find.hybrid(**by_words, vector=list(vector), alpha=0.5, fusion_type=fusion, **shared)
        else:
            found = find.near_vector(list(vector), **shared)
        return [
            Hit(
                id=str(obj.uuid),
                score=cosine(vector, obj.vector[VECTOR]),
                **{name: obj.properties[name] for name in HIT_FIELDS},
            )
            for obj in found.objects
        ]

    def optimize(self) -> None:
        """Do nothing: Weaviate optimizes by itself."""

    def _exists(self) -> bool:
        return bool(self._client.collections.exists(self._name))


def schema() -> dict[str, Any]:
    """Return the schema of a collection: its properties, and how they and the vectors are indexed."""
    text, number = DataType.TEXT, DataType.INT
    whole: dict[str, Any] = {"data_type": text, "tokenization": Tokenization.FIELD, "index_searchable": False}
    return {
        "properties": [
            *(Property(name=name, **whole) for name in TEXT_PROPERTIES),
            *(Property(name=name, data_type=text, index_filterable=False, index_searchable=False) for name in SHOWN),
            Property(name="words", data_type=text, tokenization=Tokenization.WORD, index_filterable=False),
            *(Property(name=name, data_type=number, index_filterable=False) for name in NUMBER_PROPERTIES),
        ],
        "vector_config": Configure.Vectors.self_provided(
            vector_index_config=Configure.VectorIndex.hnsw(distance_metric=VectorDistances.COSINE)
        ),
    }


def insert_all(collection: Collection[Any, Any], objects: Sequence[Any]) -> None:
    """Insert or replace these objects, and retry those that the server did not store.

    `WeaviateHook.batch_data` ignores failed objects, so that a batch of which half is lost succeeds.

    :raises AirflowException: some fail every time; the message names the first, with the server's reasons.
    """
    left, pause = list(objects), FIRST_PAUSE_S
    for tries_left in reversed(range(BATCH_TRIES)):
        try:
            errors = collection.data.insert_many(left).errors
            reasons = {index: error.message for index, error in errors.items()}
        except (WeaviateInsertManyAllFailedError, WeaviateBatchError) as error:
            reasons = dict.fromkeys(range(len(left)), str(error))
        if not reasons:
            return
        failed = [left[index] for index in reasons]
        log.warning("%d of %d objects were not stored; tries left: %d.", len(failed), len(left), tries_left)
        if tries_left:
            time.sleep(pause)
            left, pause = failed, 2 * pause
    named = "; ".join(
        f"{left[index].properties['source']} chunk {left[index].properties['position']}: {shown_text(reason)}"
        for index, reason in list(reasons.items())[:3]
    )
    raise AirflowException(f"Weaviate did not store {len(failed)} of {len(objects)} chunks. The first: {named}")


def _properties(chunk: Chunk) -> dict[str, Any]:
    properties = {name: value for name, value in vars(chunk).items() if name != "id"}
    return {**properties, "words": _words(chunk.text)}


def _words(text: str) -> str:
    """Return what a keyword search compares: the text, with pairs of characters in place of unspaced words."""

    def pairs(found: re.Match[str]) -> str:
        word = found[0]
        return " ".join(["", *(word[start : start + 2] for start in range(max(1, len(word) - 1))), ""])

    return UNSPACED.sub(pairs, text)


def _matches(filters: Mapping[str, Sequence[str]]) -> Any:
    """Return the condition that each of these properties has one of its values; None if there are no filters."""
    conditions = [Filter.by_property(name).contains_any(list(values)) for name, values in filters.items()]
    return Filter.all_of(conditions) if conditions else None


def _groups(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
