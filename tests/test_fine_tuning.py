"""The fine-tuning DAG, and the steps around its job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from include.common.storage import storage_path, write_artifact
from include.common.stored_files import stored_file
from include.fine_tuning import checks as steps
from include.fine_tuning.checks import check_examples, estimate, files_of_run, most_tokens, preflight
from include.fine_tuning.comparison import comparison_table, scores, word_f1
from include.jobs.files import upload_once
from include.jobs.service import OpenAIService, openai_service
from tests.conftest import KEY, chat_requests
from tests.emulator import JOBS, Emulator
from tests.storages import on_storage
from tests.test_chat_examples import conversation, lines, message

GPT_4O = OpenAIService("c", None, "k", {"model": "gpt-4o-2024-08-06"})
BASE_MODEL = "gpt-4o-mini"  # the scripted LLM has this one


@pytest.fixture
def provider(llm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    from local.openai_emulator import serve

    upstream = llm.env()["OPENAI_BASE_URL"]
    with serve(tmp_path / "emulator", upstream=upstream, job_seconds=0.3, token=KEY) as url:
        emulator = Emulator(url, KEY)
        monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", emulator.connection(model=BASE_MODEL))
        yield emulator


def service(**extra: Any) -> OpenAIService:
    real = openai_service("openai_default")
    return OpenAIService(real.conn_id, real.base_url, real.key, {**real.extra, **extra})


def write(storage: Path, name: str, parts: list[bytes]) -> str:
    storage.mkdir(parents=True, exist_ok=True)
    (storage / name).write_bytes(b"\n".join(parts))
    return str(storage_path(name))


def stored(name: str, parts: list[bytes]) -> Any:
    path = storage_path(name)
    write_artifact(path, b"\n".join(parts) + b"\n")
    return path


@on_storage("s3")
def test_a_run_trains_once_and_compares_both_models_but_promotes_no_model_that_is_not_better(
    provider, llm, run_dag, storage
):
    llm.reply("accounts / P3 / adjust roles", times=None)
    files = {
        f"{kind}_file": write(storage, f"{kind}.jsonl", file.read_bytes().split(b"\n"))
        for kind, file in (("training", steps.TRAINING), ("validation", steps.VALIDATION))
    }
    result = run_dag("fine_tuning", {"evaluation_size": 2, **files})
    assert result.state == "success"
    assert result.states()["promote"] == "skipped"
    (job,) = provider.jobs()
    assert result.xcom("fine_tune") == job["fine_tuned_model"]
    assert result.xcom("fine_tune", "cost_usd") == pytest.approx(result.xcom("estimate")["cost_usd"], rel=0.1)
    comparison = result.xcom("compare")
    assert set(comparison["scores"]) == {BASE_MODEL, job["fine_tuned_model"]}
    folder = stored_file(comparison["artifacts"])
    assert (folder / "scores.svg").read_text().lstrip().startswith("<?xml")
    assert "adjust roles" in (folder / "comparison.md").read_text()
    assert len(provider.client().files.list(purpose="fine-tune").data) == 2

    # Another run: the same files, and the base model's answers, are not paid for again.
    asked = len(chat_requests(llm))
    run_dag("fine_tuning", {"evaluation_size": 2, **files})
    assert len(provider.client().files.list(purpose="fine-tune").data) == 2
    assert len(chat_requests(llm)) == asked + 2
    assert len(provider.jobs()) == 2


@on_storage("disk", "s3")
def test_one_bad_line_stops_the_run_before_anything_is_uploaded(provider, run_dag, storage, logged):
    bad = write(storage, "bad.jsonl", [*lines(), b"{}", b"nonsense"])
    result = run_dag("fine_tuning", {"training_file": bad})
    assert result.state == "failed"
    assert result.states()["validate"] == "failed"
    assert provider.requests("POST", "/v1/files") == []
    output = logged()
    assert "bad.jsonl, line 13: messages: Field required" in output
    assert "bad.jsonl, line 14: Invalid JSON" in output
    assert "2 problems with the examples; nothing was uploaded" in output


def test_the_budget_stops_the_run_before_anything_is_uploaded(provider, run_dag):
    result = run_dag("fine_tuning", {"budget_usd": 0.01})
    assert result.states()["estimate"] == "failed"
    assert provider.requests("POST", "/v1/files") == []
    assert provider.jobs() == []


def test_a_file_is_only_read_from_the_projects_storage(storage):
    with pytest.raises(AirflowFailException, match="is not a file on this project's storage"):
        files_of_run({"training_file": "file:///etc/passwd", "validation_file": None})
    with pytest.raises(AirflowFailException, match="There is no file"):
        files_of_run({"training_file": str(storage_path("none.jsonl")), "validation_file": None})
    bundled = files_of_run({"training_file": None, "validation_file": None})
    assert [file.name for file in bundled] == ["training_data.jsonl", "validation_data.jsonl"]


def test_of_many_bad_lines_the_error_shows_fifty_and_counts_the_rest(storage):
    many, fine = stored("many.jsonl", [b"{}"] * 80), stored("fine.jsonl", lines())
    with pytest.raises(AirflowFailException) as raised:
        check_examples(GPT_4O, many, fine)
    message = str(raised.value)
    assert message.count("many.jsonl, line") == 50
    assert "and 30 more" in message


def test_an_example_may_be_as_long_as_the_base_model_learns_from(storage):
    long = message(content="word " * 40_000)  # about 50,000 tokens
    files = stored("long.jsonl", [*lines(), long]), stored("fine.jsonl", lines(14)[12:])
    check_examples(GPT_4O, *files)
    for extra, most in (({"model": "smollm"}, 16_385), ({**GPT_4O.extra, "max_example_tokens": 4_096}, 4_096)):
        with pytest.raises(AirflowFailException, match=f"long.jsonl, line 13: .*learns from at most {most}"):
            check_examples(OpenAIService("c", None, "k", extra), *files)
    for wrong in (0, -1, True, "many", 1.5):
        with pytest.raises(AirflowFailException, match="Connection 'c', extra: max_example_tokens: "):
            most_tokens(OpenAIService("c", None, "k", {"model": "m", "max_example_tokens": wrong}))


def test_the_estimate_is_tokens_times_epochs_times_price():
    priced = OpenAIService("c", None, "k", {"training_usd_per_million_tokens": 3})
    assert estimate(priced, 1_000_000, 3, None) == {"tokens": 3_000_000, "cost_usd": 9.0}
    assert estimate(priced, 1_000_000, 3, 9.0)["cost_usd"] == 9.0
    with pytest.raises(AirflowFailException, match=r"about \$9.00, more than the budget of \$8.99"):
        estimate(priced, 1_000_000, 3, 8.99)
    free = OpenAIService("c", None, "k", {})
    assert estimate(free, 10, 3, None)["cost_usd"] is None
    with pytest.raises(AirflowFailException, match=r"states no price.*training_usd_per_million_tokens"):
        estimate(free, 10, 3, 5.0)


def test_a_file_of_the_same_content_is_uploaded_once_whatever_its_name(provider):
    one, same = (stored(name, lines()) for name in ("one.jsonl", "two.jsonl"))
    other = stored("other.jsonl", lines(13))
    first = asyncio.run(upload_once(service(), one))
    assert asyncio.run(upload_once(service(), same)) == first
    assert asyncio.run(upload_once(service(), other)) != first
    provider.client().files.delete(first)
    assert asyncio.run(upload_once(service(), one)) != first


def test_an_upload_whose_answer_was_lost_is_found_again(provider):
    provider.fault("POST", "/v1/files", times=4, drop="after")
    file = stored("one.jsonl", lines())
    with pytest.raises(AirflowException, match=r"uploading one\.jsonl failed"):
        asyncio.run(upload_once(service(), file))
    sent = len(provider.requests("POST", "/v1/files"))
    assert asyncio.run(upload_once(service(), file)).startswith("file-")
    assert len(provider.requests("POST", "/v1/files")) == sent


def test_the_preflight_names_a_model_that_is_gone_and_what_there_is(provider):
    assert asyncio.run(preflight(service())) == BASE_MODEL
    with pytest.raises(
        AirflowFailException, match=r"does not offer the base model 'gpt-5-mini'.*It offers: .*gpt-4o-mini"
    ):
        asyncio.run(preflight(service(model="gpt-5-mini")))
    with pytest.raises(AirflowFailException, match="names no base model"):
        asyncio.run(preflight(service(model="")))


def test_the_preflight_says_when_the_account_may_not_fine_tune_and_what_to_use_instead(provider):
    provider.fault("GET", f"{JOBS}$", times=1, status=403, code="fine_tuning_disabled")
    with pytest.raises(AirflowFailException, match=r"offers no fine-tuning to this account.*another service"):
        asyncio.run(preflight(service()))


def test_the_preflight_knows_that_openai_takes_no_jobs_from_january_2027(monkeypatch):
    monkeypatch.setattr(steps, "OPENAI_ENDS", steps.OPENAI_CLOSED_TO_NEW)
    with pytest.raises(AirflowFailException, match="OpenAI has accepted no new fine-tuning jobs since"):
        asyncio.run(preflight(OpenAIService("openai_default", None, "k", {"model": "gpt-4.1-mini"})))


def test_without_a_connection_and_a_key_the_error_says_what_to_create(airflow_db, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(AirflowFailException, match=r"no Airflow connection 'openai_default'.*type openai"):
        openai_service("openai_default")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = openai_service("openai_default")
    assert (found.is_openai, found.key) == (True, KEY)


def test_a_url_with_a_password_is_shown_without_it():
    assert OpenAIService("c", "https://u:p@llm.example.com/v1?k=1", "k", {}).public_url == "https://llm.example.com/v1"


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("a / P3 / b", "A / p3 / B", 1.0),
        ("", "a", 0.0),
        ("a a a", "a", 0.5),
        ("a b c d", "a b", 2 / 3),
        ("x", "a", 0.0),
    ],
)
def test_the_score_is_the_f1_of_the_words(answer, expected, score):
    assert word_f1(answer, expected) == pytest.approx(score)


def test_exact_answers_are_counted_apart_from_those_with_the_right_words():
    assert scores(["a / b", "b / a"], ["A /  b", "a / b"]) == {"exact": 0.5, "words": 1.0}


def test_a_hostile_answer_stays_in_its_cell():
    from include.fine_tuning.examples import Example

    example = Example.model_validate(conversation(1))
    (row,) = comparison_table([example], {"m": ["| a |\n# x <script> `rm`"]}).splitlines()[2:]
    assert row == "| Question 1? | Answer 1 | \\| a \\| # x &lt;script&gt; \\`rm\\` |"
