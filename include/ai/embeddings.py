"""Embeddings of the Airflow connection `embeddings_default` (see `include.ai.connection` for what it holds)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from include.ai.connection import is_redirect, model_source, stay_on_host
from include.common.shown import shown_text

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingModel

EMBEDDINGS_CONN_ID = "embeddings_default"
DEFAULT_MODEL = "openai:text-embedding-3-small"
IN_PROCESS = "sentence-transformers:"
# By id the models of this process, which take seconds to load at their first text: a task may make several `Embedder`s.
_in_process: dict[str, EmbeddingModel] = {}

# Texts in one request; OpenAI allows 2,048 texts and 300,000 tokens, and a chunk has about 200 tokens.
BATCH_SIZE = 256
# Seconds for one attempt at a request.
CALL_TIMEOUT_S = 90.0
CONNECT_TIMEOUT_S = 10.0


class Embedder:
    """Turns texts into vectors.

    :param conn_id: the connection that names the embedding model. `dimensions` in its extra asks for shorter vectors.
    """

    def __init__(self, conn_id: str = EMBEDDINGS_CONN_ID) -> None:
        from httpx2 import AsyncClient, Timeout
        from pydantic_ai.embeddings import Embedder as PydanticEmbedder
        from pydantic_ai.embeddings import infer_embedding_model
        from pydantic_ai.exceptions import UserError

        self.conn_id = conn_id
        source = model_source(conn_id, DEFAULT_MODEL)
        dimensions = source.provider_args.pop("dimensions", None)
        try:
            model = infer_embedding_model(
                source.model_id,
                provider_factory=lambda name: source.provider(
                    name,
                    AsyncClient(
                        timeout=Timeout(CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                        event_hooks={"response": [stay_on_host]},
                        follow_redirects=True,
                    ),
                ),
            )
        except (UserError, ValueError, ImportError, TypeError) as error:
            raise AirflowFailException(
                f"Connection {conn_id!r} names the embedding model {source.model_id!r}, which cannot be built: "
                f"{shown_text(error, source.secrets)}"
            ) from None
        if source.model_id.startswith(IN_PROCESS):
            model = _in_process.setdefault(source.model_id, model)
        self.model_id = source.model_id
        self._embedder = PydanticEmbedder(model, settings={"dimensions": dimensions} if dimensions else None)

    @cached_property
    def dimension(self) -> int:
        """The length of this model's vectors. Asking the model is the one way that knows: it embeds a word."""
        return len(self.embed_query("length"))

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, in order; BATCH_SIZE texts per request."""
        return self._embed_all(texts, query=False)

    def embed_queries(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per search text, in order; BATCH_SIZE texts per request."""
        return self._embed_all(texts, query=True)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a search text."""
        return self.embed_queries([text])[0]

    def nearest_label(self, texts: Sequence[str], labels: Mapping[str, str]) -> list[str]:
        """For each text the label whose description is most similar to it (cosine)."""
        described = dict(zip(labels, self.embed_documents(list(labels.values())), strict=True))
        return [
            max(described, key=lambda label: cosine(vector, described[label])) for vector in self.embed_documents(texts)
        ]

    def _embed_all(self, texts: Sequence[str], *, query: bool) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), BATCH_SIZE):
            vectors += self._embed(list(texts[start : start + BATCH_SIZE]), query=query)
        return vectors

    def _embed(self, texts: list[str], *, query: bool) -> list[list[float]]:
        from pydantic_ai.exceptions import ModelAPIError, ModelQuotaExceededError, ModelRequestRejectedError

        embed = self._embedder.embed_query_sync if query else self._embedder.embed_documents_sync
        try:
            return [list(vector) for vector in embed(texts).embeddings]
        except ModelAPIError as error:
            status = getattr(error, "status_code", "no answer")
            final = isinstance(error, (ModelRequestRejectedError, ModelQuotaExceededError)) or is_redirect(status)
            kind = AirflowFailException if final else AirflowException
            if is_redirect(status):
                status = f"status {status}: the server redirects to another host"
            raise kind(
                f"Connection {self.conn_id!r}: embedding with {self.model_id!r} failed ({status}). "
                "Check the connection's host, key and model."
            ) from None


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute the cosine similarity of two vectors, from -1 to 1; 0 if one of them is zero."""
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0
