"""The vector stores that the contract tests run on: LanceDB always, Weaviate wherever WEAVIATE_URL answers.

WEAVIATE_URL (http://127.0.0.1:8081 for the compose file's service), WEAVIATE_API_KEY and WEAVIATE_GRPC_PORT
(default 50051) say where.
"""

from __future__ import annotations

import json
import os
import uuid
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from include.rag.chunks import Chunk
from include.rag.documents import Document, listed_documents, read_document

SKIPPED = (
    "NOT RUN ON WEAVIATE: set WEAVIATE_URL and WEAVIATE_API_KEY (`astro dev start` has one at http://127.0.0.1:8081, "
    "key local-development-key) to run the vector store tests on it too."
)


def weaviate_connection() -> str:
    """Return a connection to the server of WEAVIATE_URL as JSON, for AIRFLOW_CONN_*; skip the test if there is none."""
    url = os.environ.get("WEAVIATE_URL")
    if not url:
        warnings.warn(SKIPPED, stacklevel=2)
        pytest.skip(SKIPPED)
    where = urlsplit(url)
    extra = {
        "api_key": os.environ.get("WEAVIATE_API_KEY", ""),
        "http_secure": where.scheme == "https",
        "grpc_secure": where.scheme == "https",
        "grpc_port": int(os.environ.get("WEAVIATE_GRPC_PORT", "50051")),
    }
    return json.dumps({"conn_type": "weaviate", "host": where.hostname, "port": where.port, "extra": extra})


def lancedb_connection(folder: Path) -> str:
    return json.dumps({"conn_type": "lancedb", "host": str(folder / "lancedb")})


def each_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point `vector_store_default` at the store that `request.param` names; return a prefix of names of its own."""
    value = weaviate_connection() if request.param == "weaviate" else lancedb_connection(tmp_path)
    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", value)
    return f"Test_{uuid.uuid4().hex[:12]}"


def delete_collections(prefix: str) -> None:
    """Delete everything with this prefix from the Weaviate server."""
    from include.rag.stores.weaviate_store import connect

    client = connect("vector_store_default")
    for alias in client.alias.list_all():
        if alias.startswith(prefix):
            client.alias.delete(alias_name=alias)
    for name in client.collections.list_all():
        if name.startswith(prefix):
            client.collections.delete(name)
    client.close()


def read_documents() -> list[Document]:
    """Read all documents of the knowledge base, by name."""
    return [read_document(name) for name in listed_documents()]


def chunks(source: str, *texts: str, format: str = "markdown") -> list[Chunk]:
    """Make a chunk of each text, as if of one document."""
    return [
        Chunk(
            id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{source}#{position}")),
            source=source,
            title=source.upper(),
            headings=f"{source.upper()} > Part {position}",
            position=position,
            text=text,
            format=format,
            checksum=f"checksum of {text}",
            document_checksum="+".join(texts),
            document_chunks=len(texts),
        )
        for position, text in enumerate(texts)
    ]
