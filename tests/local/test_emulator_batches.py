"""The emulator's batches, through the real client over HTTP. A scripted LLM is behind it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai  # noqa: TID253
import pytest

from local.openai_emulator import serve
from tests.conftest import chat_requests
from tests.emulator import Emulator
from tests.local.test_openai_emulator import process
from tests.stack import wait_until

pytestmark = pytest.mark.one_stack

ENDPOINT: Any = "/v1/chat/completions"


@pytest.fixture
def emulator(llm: Any, tmp_path: Path) -> Iterator[Emulator]:
    with serve(tmp_path, llm.base_url()) as url:
        yield Emulator(url)


def line(custom_id: Any, **more: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body} | more


def create(emulator: Emulator, *lines: Any, purpose: Any = "batch", **settings: Any) -> Any:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = emulator.client().files.create(file=("in.jsonl", text.encode()), purpose=purpose)
    wanted = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"} | settings
    return emulator.client().batches.create(**wanted)


def wait(emulator: Emulator, batch: Any, status: str = "completed") -> Any:
    wait_until(lambda: emulator.client().batches.retrieve(batch.id).status == status)
    return emulator.client().batches.retrieve(batch.id)


def results(emulator: Emulator, file: str | None) -> dict[str, Any]:
    text = emulator.client().files.content(file).text if file else ""
    return {each["custom_id"]: each for each in map(json.loads, text.splitlines())}


def test_requests_are_answered_by_the_server_behind_and_errors_are_in_a_file_of_their_own(emulator, llm):
    llm.fail(400).reply("one").reply("two")
    batch = wait(emulator, create(emulator, line("a"), line("b"), line("c"), metadata={"k": "v"}))
    answers, errors = results(emulator, batch.output_file_id), results(emulator, batch.error_file_id)
    said = {key: each["response"]["body"]["choices"][0]["message"]["content"] for key, each in answers.items()}
    assert said == {"b": "one", "c": "two"}
    assert errors["a"]["response"]["status_code"] == 400
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert (batch.metadata, batch.created_at <= batch.completed_at) == ({"k": "v"}, True)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("[]", "invalid_json_line"),
        (line("a"), "duplicate_custom_id"),
        (line(None), "invalid_custom_id"),
        (line("b", method="GET"), "invalid_method"),
        (line("b", url="/v1/embeddings"), "invalid_url"),
        (line("b", body={"model": "other"}), "mismatched_model"),
        (line("b", body={}), "invalid_body.model"),
    ],
)
def test_a_bad_line_or_an_empty_file_fails_the_batch_before_anything_is_asked(emulator, llm, bad, code):
    batch = wait(emulator, create(emulator, line("a"), bad), "failed")
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, 2)]
    assert wait(emulator, create(emulator, "\n\n"), "failed").errors.data[0].code == "empty_file"
    assert chat_requests(llm) == []


def test_what_is_not_a_batch_is_refused_at_once(emulator):
    for settings in ({"purpose": "fine-tune"}, {"endpoint": "/v1/embeddings"}, {"completion_window": "1h"}):
        with pytest.raises(openai.BadRequestError):
            create(emulator, line("a"), **settings)
    with pytest.raises(openai.BadRequestError, match="no such file"):
        create(emulator, line("a"), input_file_id="file-1")
    with pytest.raises(openai.NotFoundError):
        emulator.client().batches.retrieve("batch_1")


def test_a_cancelled_batch_leaves_the_answers_that_it_had(emulator):
    emulator.next_batch(hold="in_progress", after=1)
    batch = create(emulator, line("a"), line("b"))
    wait_until(lambda: emulator.client().batches.retrieve(batch.id).request_counts.completed == 1)
    assert emulator.client().batches.cancel(batch.id).status == "cancelling"
    ended = wait(emulator, batch, "cancelled")
    assert list(results(emulator, ended.output_file_id)) == ["a"]
    assert results(emulator, ended.error_file_id)["b"]["error"]["code"] == "batch_cancelled"
    with pytest.raises(openai.BadRequestError, match="has ended"):
        emulator.client().batches.cancel(batch.id)


def test_a_batch_may_expire_or_fail_when_asked_to(emulator, llm):
    emulator.next_batch(status="expired", after=1)
    expired = wait(emulator, create(emulator, line("a"), line("b")), "expired")
    assert results(emulator, expired.error_file_id)["b"]["error"]["code"] == "batch_expired"
    emulator.next_batch(status="failed", error={"code": "odd", "message": "No.", "line": 2})
    assert wait(emulator, create(emulator, line("c")), "failed").errors.data[0].message == "No."
    assert len(chat_requests(llm)) == 1


def test_after_a_kill_a_batch_is_answered_from_its_start(llm, tmp_path):
    def answered(emulator: Emulator) -> bool:
        return emulator.client().batches.retrieve(batch.id).request_counts.completed == 1

    with process(tmp_path, "--upstream", llm.base_url()) as (first, emulator):
        emulator.next_batch(hold="in_progress", after=1)
        batch = create(emulator, line("a"), line("b"))
        wait_until(lambda: answered(emulator))
        first.kill()
        first.wait()
    with process(tmp_path, "--upstream", llm.base_url()) as (_, emulator):
        wait_until(lambda: answered(emulator))
        emulator.set_batch(batch.id, "expired")
        assert list(results(emulator, wait(emulator, batch, "expired").output_file_id)) == ["a"]
    assert len(chat_requests(llm)) == 2
