"""Open the vector store of a connection, LanceDB or Weaviate by its type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Connection

from include.rag.stores.base import VectorStore

VECTOR_STORE_CONN_ID = "vector_store_default"


@contextmanager
def open_vector_store(conn_id: str = VECTOR_STORE_CONN_ID) -> Iterator[VectorStore]:
    """Open the store of the connection `conn_id`, and close it at the end of the block.

    :raises AirflowFailException: the connection's type is not supported, or its key is refused.
    :raises AirflowException: the store does not answer.
    """
    conn = Connection.get(conn_id)
    store: VectorStore
    if conn.conn_type == "lancedb":
        from include.rag.stores.lancedb_store import LanceDBStore

        store = LanceDBStore(conn.host, conn.extra_dejson)
    elif conn.conn_type == "weaviate":
        try:
            from include.rag.stores.weaviate_store import WeaviateStore
        except ImportError as error:
            raise AirflowFailException(
                f"Connection {conn_id!r} is to Weaviate, for which {error.name} is missing. It needs "
                "include/rag/stores/weaviate_store.py and the package apache-airflow-providers-weaviate."
            ) from error
        store = WeaviateStore(conn_id)
    else:
        raise AirflowFailException(
            f"Connection {conn_id!r} has the type {conn.conn_type!r}; supported are 'lancedb' "
            "(host = a folder or an s3:// URL) and 'weaviate'."
        )
    try:
        yield store
    finally:
        store.close()
