"""Embeddings by the Airflow connection `embeddings_default` (its contents: see `include.ai.connection`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from include.ai.connection import read_model_source
from include.common.provider_http import MISDIRECTED, is_refusal_status

try:
    from include.ai import layers
except ImportError:  # a copied pattern may lack it
    layers = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingModel, EmbeddingResult

EMBEDDINGS_CONN_ID = "embeddings_default"
DEFAULT_MODEL = "openai:text-embedding-3-small"
IN_PROCESS = "sentence-transformers:"
# The models of this process by id. One takes seconds to load at its first text; a task may create several `Embedder`s.
_in_process: dict[str, EmbeddingModel] = {}

# Texts in one request; OpenAI allows 2,048 texts and 300,000 tokens, and a chunk has about 200 tokens.
BATCH_SIZE = 256


class Embedder:
    """Turns texts into vectors: lists with one float per dimension of the model.

    :param conn_id: the connection to the embedding model. `dimensions` in its extra requests shorter vectors.
    """

    def __init__(self, conn_id: str = EMBEDDINGS_CONN_ID) -> None:
        from pydantic_ai.embeddings import Embedder as PydanticEmbedder
        from pydantic_ai.embeddings import infer_embedding_model

        self.conn_id = conn_id
        source = self._source = read_model_source(conn_id, DEFAULT_MODEL)
        dimensions = source.provider_args.pop("dimensions", None)
        model = source.build(infer_embedding_model, layers.http_hooks(source) if layers else {})
        if source.model_id.startswith(IN_PROCESS):
            model = _in_process.setdefault(source.model_id, model)
        self.model_id = source.model_id
        self._embedder = PydanticEmbedder(model, settings={"dimensions": dimensions} if dimensions else None)

    @cached_property
    def dimension(self) -> int:
        """The length of this model's vectors, measured by embedding a word."""
        return len(self.embed_query("length"))

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector per text, in order; BATCH_SIZE texts per request.

        :raises AirflowFailException: the provider refuses the request, the key or the model.
        :raises AirflowException: a later try may succeed.
        """
        return self._embed_all(texts, query=False)

    def embed_queries(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector per search text: as `embed_documents`."""
        return self._embed_all(texts, query=True)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a search text."""
        return self.embed_queries([text])[0]

    def _embed_all(self, texts: Sequence[str], *, query: bool) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), BATCH_SIZE):
            vectors += self._embed(list(texts[start : start + BATCH_SIZE]), query=query)
        return vectors

    def _embed(self, texts: list[str], *, query: bool) -> list[list[float]]:
        from pydantic_ai.exceptions import ModelAPIError, ModelQuotaExceededError, ModelRequestRejectedError

        embed = self._embedder.embed_query_sync if query else self._embedder.embed_documents_sync
        record = layers.begin_embedding(self._source) if layers else None
        result: EmbeddingResult | None = None
        try:
            result = embed(texts)
            return [list(vector) for vector in result.embeddings]
        except ModelAPIError as error:
            status = getattr(error, "status_code", "no answer")
            final = isinstance(error, (ModelRequestRejectedError, ModelQuotaExceededError)) or is_refusal_status(status)
            kind = AirflowFailException if final else AirflowException
            if status == MISDIRECTED:
                status = f"status {status}: the server redirects to another host"
            raise kind(
                f"Connection {self.conn_id!r}: embedding with {self.model_id!r} failed ({status}). "
                "Check the connection's host, key and model."
            ) from None
        finally:
            if record:
                record(result)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine similarity of two vectors, from -1 to 1; 0 if one of them is zero."""
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0
