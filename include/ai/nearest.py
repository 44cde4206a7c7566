"""Labels without a model's answer: of each text, the one whose description is nearest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from include.ai.embeddings import Embedder, cosine


def nearest_labels(texts: Sequence[str], labels: Mapping[str, str]) -> list[str]:
    """Return for each text the label whose description is most similar to it (cosine).

    :param labels: descriptions by label.
    :raises AirflowException: as `Embedder.embed_documents`.
    """
    embedder = Embedder()
    described = dict(zip(labels, embedder.embed_documents(list(labels.values())), strict=True))
    vectors = embedder.embed_documents(texts)
    return [max(described, key=lambda label: cosine(vector, described[label])) for vector in vectors]
