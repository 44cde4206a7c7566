"""Labels without a chat model: each text gets the label with the nearest description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from include.ai.embeddings import Embedder, cosine


def nearest_labels(texts: Sequence[str], labels: Mapping[str, str]) -> list[str]:
    """Return for each text the label with the most similar description (cosine).

    :param labels: descriptions by label.
    :raises AirflowException: as `Embedder.embed_documents`.
    """
    embedder = Embedder()
    described = dict(zip(labels, embedder.embed_documents(list(labels.values())), strict=True))
    vectors = embedder.embed_documents(texts)
    return [max(described, key=lambda label: cosine(vector, described[label])) for vector in vectors]
