"""WordLlama's 256-dimensional text vectors: fast, small, and the same on every machine."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import wordllama
from wordllama import WordLlama

from .wire import EmbeddingRequest

EMBEDDING_MODEL = "wordllama-256"
DIMENSIONS = 256


class Embedder:
    """The loaded embedding model."""

    def __init__(self) -> None:
        self._model = WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)

    def reply(self, request: EmbeddingRequest) -> dict[str, Any]:
        """Return the body of an embeddings answer: a unit vector of 256 float32 per input, in the same order."""
        vectors = np.asarray(self._model.embed(request.input, norm=True), dtype=np.float32)
        tokens = self._count(request.input)
        data = [
            {"object": "embedding", "index": i, "embedding": _encode(vector, request.encoding_format)}
            for i, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": EMBEDDING_MODEL, "usage": usage}

    def _count(self, texts: list[str]) -> int:
        encodings = self._model.tokenizer.encode_batch(texts, add_special_tokens=False)
        return sum(sum(encoding.attention_mask) for encoding in encodings)


def _encode(vector: Any, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
