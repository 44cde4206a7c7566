"""The DAG `batch_api_inference`: a file of rows through the Batch API, to a report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel

from include.batch_api.run import BatchApiRun, batch_cost
from include.common.storage import storage_path, write_artifact
from include.common.stored_files import stored_file
from include.jobs.service import OpenAIService
from tests.conftest import KEY, chat_requests
from tests.emulator import BATCHES, Emulator
from tests.storages import on_storage

DAG = "batch_api_inference"
LABELS = {"sentiment": "positive", "topic": "app"}


@pytest.fixture
def provider(llm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    from local.openai_emulator import serve

    with serve(tmp_path / "emulator", upstream=llm.env()["OPENAI_BASE_URL"], token=KEY) as url:
        emulator = Emulator(url, KEY)
        price = {"input": 1000.0, "output": 1000.0}
        connection = emulator.connection(model="gpt-4o-mini", usd_per_million_tokens=price)
        monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", connection)
        yield emulator


@on_storage("disk", "s3")
def test_rows_become_one_batch_and_each_answer_is_checked(provider, llm, run_dag, storage):
    storage.mkdir(parents=True, exist_ok=True)
    rows = [{"name": "r1", "text": "Nice."}, {"name": "r2", "text": ""}, {"name": "r3", "text": "{{ 7 * 6 }} <b>"}]
    (storage / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    llm.reply(json.dumps(LABELS))
    llm.reply("sorry", times=None)
    conf = {"input": str(storage_path("rows.jsonl")), "text_column": "text", "id_column": "name"}
    result = run_dag(DAG, conf | {"output_format": "jsonl", "allowed_failures": 0.7})
    assert result.state == "success"
    (batch,) = provider.batches()
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    report = result.xcom("report")
    found = [json.loads(line) for line in stored_file(report["results"]).read_bytes().split(b"\n")[:-1]]
    assert [(row["id"], row["answer"], row["error_class"]) for row in found] == [
        ("r1", LABELS, ""),
        ("r2", None, "empty"),
        ("r3", None, "invalid answer"),
    ]
    assert "3 rows: 1 answered, 1 empty, 1 invalid answer, $" in report["result"]
    folder = stored_file(report["artifacts"])
    counted = json.loads((folder / "report.json").read_text())
    assert counted["cost_usd"] == pytest.approx((counted["input_tokens"] + counted["output_tokens"]) / 1000 / 2)
    assert (folder / "topic.svg").read_text().lstrip().startswith("<?xml")
    asked = chat_requests(llm)
    assert asked[-1]["messages"][1]["content"] == "{{ 7 * 6 }} <b>"
    assert asked[0]["response_format"]["json_schema"]["schema"]["additionalProperties"] is False


def test_too_many_rows_without_an_answer_fail_the_run_with_the_reason(provider, llm, run_dag, logged):
    llm.reply("sorry", times=None)
    result = run_dag(DAG, {"limit": 2})
    assert result.states() == {"write_requests": "success", "answer": "success", "report": "failed"}
    assert "2 of 2 rows are without an answer, more than the allowed share of 0.05" in logged()


def test_a_file_that_cannot_be_read_costs_nothing(provider, run_dag, logged):
    result = run_dag(DAG, {"input": "file:///etc/passwd"})
    assert result.state == "failed"
    assert "is not a file on this project's storage" in logged()
    assert provider.requests("POST", BATCHES) == []


class Summary(BaseModel):
    text: str


def test_half_characters_and_nulls_of_answers_errors_and_ids_lose_no_result(storage, tmp_path, monkeypatch):
    rows = [{"name": "r1 \ud83d", "text": "Nice. \ud83d"}, {"name": "r2", "text": "Bad."}]
    write_artifact(storage_path("rows.jsonl"), "".join(f"{json.dumps(row)}\n" for row in rows))
    content = json.dumps({"text": "nu\0ll, half \ud83d"})  # in which they are escaped, and once more in its line
    message = {"role": "assistant", "content": content}
    response = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }
    error = {"status": 400, "code": "bad", "message": "half \ud83d"}
    answers = [
        {"custom_id": "row-1", "response": response, "error": None},
        {"custom_id": "row-2", "response": None, "error": error},
    ]
    url = write_artifact(storage_path("answers.jsonl"), "".join(f"{json.dumps(answer)}\n" for answer in answers))
    params = {"input": str(storage_path("rows.jsonl")), "text_column": "text", "id_column": "name", "limit": None}
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps({"conn_type": "openai", "extra": {"model": "our-own"}}))
    params |= {"output_format": "jsonl", "allowed_failures": 1}
    run = BatchApiRun("run", params, tmp_path, "Summarize.", Summary, "c")
    run.write_requests()
    report = run.report(url)

    asked, _ = Path(storage / "batch_api_inference" / "run" / "requests.jsonl").read_text().splitlines()
    assert json.loads(asked)["body"]["messages"][1]["content"] == "Nice. \ufffd"
    found = [json.loads(line) for line in Path(report["results"].removeprefix("file://")).read_text().splitlines()]
    assert [(row["id"], row["answer"], row["error"]) for row in found] == [
        ("r1 \ufffd", {"text": "null, half \ufffd"}, ""),
        ("r2", None, "400, bad, half \ufffd"),
    ]


def test_the_price_is_half_that_of_single_calls_and_unknown_for_an_unknown_model():
    service = OpenAIService("c", None, "k", {})
    assert batch_cost(service, "gpt-4o-mini", 1_000_000, 1_000_000) == pytest.approx((0.15 + 0.6) / 2)
    assert batch_cost(service, "our-own", 10, 10) is None


def test_a_price_that_is_not_valid_is_refused_before_anything_is_paid(storage, tmp_path, monkeypatch):
    extra = {"model": "m", "usd_per_million_tokens": {"input": 1}}
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps({"conn_type": "openai", "extra": extra}))
    params = {"input": None, "text_column": "review", "id_column": None, "limit": 1}
    with pytest.raises(AirflowFailException, match=r"'c', extra: usd_per_million_tokens\.output"):
        BatchApiRun("run", params, tmp_path, "Summarize.", Summary, "c").write_requests()


@pytest.mark.parametrize("status", [400, 408, 409, 422, 429, 500, None])
def test_a_row_counts_as_refused_only_if_it_would_not_be_sent_again(storage, tmp_path, monkeypatch, status):
    write_artifact(storage_path("rows.jsonl"), '{"text": "Nice."}\n')
    answer = {"custom_id": "row-1", "response": None, "error": {"status": status, "code": "c", "message": "m"}}
    url = write_artifact(storage_path("answers.jsonl"), f"{json.dumps(answer)}\n")
    params = {"input": str(storage_path("rows.jsonl")), "text_column": "text", "id_column": None, "limit": None}
    params |= {"output_format": "jsonl", "allowed_failures": 1}
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps({"conn_type": "openai", "extra": {"model": "our-own"}}))
    report = BatchApiRun("run", params, tmp_path, "Summarize.", Summary, "c").report(url)

    assert ("1 refused" if status in (400, 422) else "1 unanswered") in report["result"]
