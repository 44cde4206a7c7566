"""The DAG `rag_pipeline`: an index in step with its documents, and answers that say where they stand.

The scripted server's embeddings are pseudo-random: a search finds something with `min_score` -1 only.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llmock.scenarios import Match, Reply, ToolCall

from include import documents, knowledge_index
from tests.conftest import KEY, chat_requests, embedding_requests, model_connection

DONT_KNOW = "I don't know: the knowledge base does not say."
ANYTHING = {"query": "How long is a reset link valid?", "min_score": -1}


@pytest.fixture
def knowledge_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A knowledge base of three documents, to change at will."""
    folder = tmp_path / "knowledge_base"
    folder.mkdir()
    for name in ("free-trial.md", "geofences.md", "resetting-your-password.md"):
        shutil.copy(documents.KNOWLEDGE_BASE / name, folder)
    monkeypatch.setattr(knowledge_index, "read_documents", partial(documents.read_documents, folder))
    return folder


def answer(llm: Any, passages: list[int]) -> None:
    arguments = {"answer": "Sixty minutes.", "passages": passages}
    llm.add(Reply(tool_calls=(ToolCall("final_result", arguments),), match=Match(path="*/chat/completions")))


def stored_rows(storage: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows of the vector store, sorted, by collection."""
    import lancedb

    database = lancedb.connect(str(storage.parent / "lancedb"))
    return {
        name: sorted(database.open_table(name).to_arrow().to_pylist(), key=lambda row: row["id"])
        for name in database.list_tables().tables
    }


def stored_texts(storage: Path) -> dict[str, str]:
    """The stored text of each document of the only collection, its chunks joined."""
    (rows,) = stored_rows(storage).values()
    return {source: "".join(r["text"] for r in rows if r["source"] == source) for source in {r["source"] for r in rows}}


def published(run: Any) -> dict[str, Any]:
    return json.loads(Path(run.xcom("publish_answer")["artifact"].removeprefix("file://")).read_text())


def test_the_first_run_indexes_every_document_in_a_few_requests(run_dag, llm, storage):
    answer(llm, [1])
    run = run_dag("rag_pipeline", ANYTHING)

    assert run.state == "success"
    names = {document.source for document in documents.read_documents()}
    assert len(names) == 30
    assert stored_texts(storage).keys() == names
    probe, *batches, query = embedding_requests(llm)  # one text to learn the vectors' length, then three tasks' chunks
    assert len(batches) == 3
    assert len(probe["input"]) == len(query["input"]) == 1
    (rows,) = stored_rows(storage).values()
    assert sum(len(request["input"]) for request in batches) == len(rows)
    ordered = sorted(names)
    assert [run.task_instance("index_documents", n).rendered_map_index for n in range(3)] == [
        f"{ordered[start]} to {ordered[start + 9]}" for start in (0, 10, 20)
    ]


def test_a_second_run_embeds_the_query_only_and_leaves_the_same_rows(run_dag, llm, storage):
    answer(llm, [1])
    run_dag("rag_pipeline", ANYTHING)
    before, requests = stored_rows(storage), len(embedding_requests(llm))
    answer(llm, [1])
    run = run_dag("rag_pipeline", ANYTHING)

    assert run.state == "success"
    assert [request["input"] for request in embedding_requests(llm)[requests:]] == [[ANYTHING["query"]]]
    assert stored_rows(storage) == before


def test_an_edited_document_replaces_its_old_chunks(run_dag, llm, storage, knowledge_base):
    long = "\n\n".join(f"## Section {n}\n\n{'An old sentence. ' * 30}" for n in range(4))
    (knowledge_base / "geofences.md").write_text(f"# Geofences\n\n{long}")
    answer(llm, [1])
    run_dag("rag_pipeline", ANYTHING)
    requests = len(embedding_requests(llm))
    (knowledge_base / "geofences.md").write_text("# Geofences\n\nA new sentence.")
    answer(llm, [1])
    run = run_dag("rag_pipeline", ANYTHING)

    assert run.xcom("find_changed_documents") == [["geofences.md"]]
    texts = stored_texts(storage)
    assert texts["geofences.md"] == "# Geofences\n\nA new sentence."
    assert len(texts) == 3
    assert len(embedding_requests(llm)) == requests + 2


def test_a_removed_document_disappears(run_dag, llm, storage, knowledge_base):
    answer(llm, [1])
    run_dag("rag_pipeline", ANYTHING)
    (knowledge_base / "free-trial.md").unlink()
    answer(llm, [1])
    run = run_dag("rag_pipeline", ANYTHING)

    assert run.xcom("delete_removed_documents") == ["free-trial.md"]
    assert stored_texts(storage).keys() == {"geofences.md", "resetting-your-password.md"}


def test_the_answer_is_published_with_the_documents_it_cites(run_dag, llm, storage):
    answer(llm, [2])
    run = run_dag("rag_pipeline", {**ANYTHING, "k": 3})

    passages = run.xcom("retrieve")
    assert len(passages) == 3
    source = passages[1]["source"]
    assert published(run) == {"question": ANYTHING["query"], "answer": "Sixty minutes.", "sources": [source]}
    assert run.xcom("publish_answer")["result"] == f"Sixty minutes. [{source}]"
    prompt = json.dumps(chat_requests(llm)[0]["messages"][-1]["content"])
    assert all(json.dumps(f"[{n}] {p['text']}")[1:-1] in prompt for n, p in enumerate(passages, 1))


def test_passages_that_were_not_retrieved_do_not_count_as_sources(run_dag, llm, storage, knowledge_base):
    answer(llm, [3, 9])
    run = run_dag("rag_pipeline", {**ANYTHING, "k": 2})

    assert run.state == "success"
    assert published(run)["sources"] == []
    assert published(run)["answer"] == DONT_KNOW


def test_a_passage_beside_one_that_was_not_retrieved_counts(run_dag, llm, storage, knowledge_base):
    answer(llm, [7, 1])
    run = run_dag("rag_pipeline", {**ANYTHING, "k": 2})

    assert published(run)["sources"] == [run.xcom("retrieve")[0]["source"]]
    assert published(run)["answer"] == "Sixty minutes."


def test_an_answer_that_cites_no_passage_is_i_dont_know_without_sources(run_dag, llm, storage, knowledge_base):
    answer(llm, [])
    run = run_dag("rag_pipeline", ANYTHING)

    assert run.state == "success"
    assert published(run) == {"question": ANYTHING["query"], "answer": DONT_KNOW, "sources": []}


def test_where_nothing_is_similar_no_model_is_called(run_dag, llm, storage, knowledge_base):
    run = run_dag("rag_pipeline", {"query": "What is the capital of France?", "min_score": 1})

    assert run.state == "success"
    assert run.states()["generate_answer"] == "skipped"
    assert chat_requests(llm) == []
    assert published(run) == {"question": "What is the capital of France?", "answer": DONT_KNOW, "sources": []}


def test_two_embedding_models_never_share_a_collection(run_dag, llm, storage, knowledge_base, monkeypatch):
    answer(llm, [1])
    run_dag("rag_pipeline", ANYTHING)
    other = model_connection(llm.base_url("openai"), "openai:text-embedding-3-large")
    monkeypatch.setenv("AIRFLOW_CONN_EMBEDDINGS_DEFAULT", other)
    answer(llm, [1])
    run = run_dag("rag_pipeline", ANYTHING)

    assert run.state == "success"
    assert len(run.xcom("find_changed_documents")[0]) == 3
    assert len(stored_rows(storage)) == 2


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"  \n", "empty"), (b"# Geb\xfchren", "UTF-8")], ids=["empty", "Latin-1"]
)
def test_a_document_that_cannot_be_read_fails_the_run_by_name(
    run_dag, llm, storage, knowledge_base, logged, content, complaint
):
    (knowledge_base / "broken.md").write_bytes(content)
    run = run_dag("rag_pipeline", ANYTHING)

    assert run.state == "failed"
    assert run.states()["find_changed_documents"] == "failed"
    assert any("broken.md" in line and complaint in line for line in logged().splitlines())
    assert llm.requests == []


def test_an_empty_knowledge_base_fails_the_run_and_deletes_nothing(run_dag, llm, storage, knowledge_base, logged):
    answer(llm, [1])
    run_dag("rag_pipeline", ANYTHING)
    before = stored_rows(storage)
    shutil.rmtree(knowledge_base)
    run = run_dag("rag_pipeline", ANYTHING)

    assert run.state == "failed"
    assert str(knowledge_base) in logged()
    assert stored_rows(storage) == before


def test_embeddings_that_are_refused_fail_at_once_and_name_the_connection(run_dag, llm, storage, logged):
    llm.fail(401, message=f"Incorrect key {KEY}", times=None)
    run = run_dag("rag_pipeline", ANYTHING)

    assert run.state == "failed"
    assert run.task_instance("find_changed_documents").try_number == 1
    log = logged()
    assert "Connection 'embeddings_default'" in log
    assert KEY not in log
