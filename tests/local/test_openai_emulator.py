"""The emulator of OpenAI's fine-tuning, through the real client over HTTP. A scripted LLM is behind it."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai  # noqa: TID253
import pytest

from include.fine_tuning.checks import TRAINING
from local.openai_emulator import serve
from tests.conftest import PROJECT, chat_requests
from tests.emulator import BASE_MODEL, JOBS, Emulator
from tests.stack import wait_until

pytestmark = pytest.mark.one_stack

SECONDS = 100


@pytest.fixture
def clock() -> SimpleNamespace:
    """Stands still until it is set."""
    return SimpleNamespace(now=1_000_000)


@pytest.fixture
def emulator(tmp_path: Path, clock: SimpleNamespace) -> Iterator[Emulator]:
    with serve(tmp_path, job_seconds=SECONDS, clock=lambda: clock.now) as url:
        yield Emulator(url)


def upload(emulator: Emulator, content: str, purpose: Any = "fine-tune") -> str:
    return emulator.client().files.create(file=("training.jsonl", content.encode()), purpose=purpose).id


def create(emulator: Emulator, **settings: Any) -> Any:
    wanted = {"model": BASE_MODEL, "training_file": settings.get("training_file") or emulator.upload(), **settings}
    return emulator.client().fine_tuning.jobs.create(**wanted)


def retrieve(emulator: Emulator, job: Any) -> Any:
    return emulator.client().fine_tuning.jobs.retrieve(job.id)


def events(emulator: Emulator, job: Any) -> list[Any]:
    """The oldest first."""
    return list(emulator.client().fine_tuning.jobs.list_events(job.id, limit=2))[::-1]


def conversation(question: str, answer: str = "ok", **more: Any) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]
    return json.dumps({"messages": [{"role": "system", "content": "Be brief."}, *turns]})


def test_a_job_goes_through_all_statuses_by_the_clock_and_leaves_events_a_model_and_results(emulator, clock):
    training = upload(emulator, "\n".join([conversation("one two?")] * 10))
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5}}}
    more = {"validation_file": training, "suffix": "house", "seed": 7, "metadata": {"run": "1"}, "method": method}
    job = create(emulator, training_file=training, **more)
    early, seen = events(emulator, job), [job.status]
    for second in (9, 11, 19, 21, 99, 101):
        clock.now = job.created_at + second
        seen.append(retrieve(emulator, job).status)
    assert seen == ["validating_files"] * 2 + ["queued"] * 2 + ["running"] * 2 + ["succeeded"]
    ended = retrieve(emulator, job)
    assert ended.fine_tuned_model == f"ft:{BASE_MODEL}:emulator:house:{job.id[6:14]}"
    assert (ended.seed, ended.metadata, ended.finished_at) == (7, {"run": "1"}, clock.now)
    assert ended.trained_tokens == 10 * (3 * 3 + 3 + 3 + 1) * 5
    assert ended.fine_tuned_model in [model.id for model in emulator.client().models.list()]
    (results,) = ended.result_files
    assert emulator.client().files.content(results).text.startswith("step,train_loss")
    late = events(emulator, job)
    words = [event.message.split()[0] for event in late]
    assert words == ["Created", "Validating", "Files", "Fine-tuning", "New", "The"]
    assert [event.id for event in late[:2]] == [event.id for event in early]


def test_jobs_are_listed_the_newest_first_by_metadata_over_several_pages(emulator):
    file = emulator.upload()
    ids = [create(emulator, training_file=file, metadata={"key": "a b&c", "n": str(n)}).id for n in range(5)]
    create(emulator, training_file=file)
    jobs = emulator.client().fine_tuning.jobs
    assert [job.id for job in jobs.list(metadata={"key": "a b&c"}, limit=2)] == ids[::-1]
    assert [job.id for job in jobs.list(metadata={"key": "a b&c", "n": "3"})] == [ids[3]]
    assert len(list(jobs.list(limit=4))) == 6


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([conversation("x"), "[]"], "line 2: it is not"),
        (
            [conversation("x"), '{"messages": [{"role": "user", "content": "x"}]}'],
            "line 2: there is no assistant message",
        ),
        (['{"messages": [{"role": "cook", "content": "x"}]}'], "line 1: 'cook' is not a role"),
        ([conversation("x")] * 9, "has 9 examples; at least 10"),
    ],
)
def test_a_bad_file_fails_the_job_with_its_line_once_it_is_looked_at(emulator, clock, lines, reason):
    job = create(emulator, training_file=upload(emulator, "\n".join(lines)))
    clock.now += SECONDS
    failed = retrieve(emulator, job)
    assert (failed.status, failed.error.code, failed.error.param) == (
        "failed",
        "invalid_training_file",
        "training_file",
    )
    assert reason in failed.error.message
    assert (failed.fine_tuned_model, failed.trained_tokens, failed.result_files) == (None, None, [])
    assert [event.level for event in events(emulator, job)] == ["info", "info", "error"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "gpt-0"}, 404, "model"),
        ({"training_file": "file-0"}, 400, "training_file"),
        ({"suffix": "x" * 65}, 400, "suffix"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata.k"),
        ({"method": {"type": "dpo"}}, 400, "method.type"),
    ],
)
def test_a_bad_request_is_refused_with_the_field_at_fault(emulator, change, status, param):
    with pytest.raises(openai.APIStatusError) as caught:
        create(emulator, **change)
    assert (caught.value.status_code, caught.value.param) == (status, param)


def test_a_job_can_be_cancelled_until_it_has_ended(emulator):
    jobs = emulator.client().fine_tuning.jobs
    job = create(emulator)
    assert jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="has ended"):
        jobs.cancel(job.id)
    with pytest.raises(openai.NotFoundError):
        jobs.cancel("ftjob-0")


def test_files_are_listed_and_deleted_and_equal_ones_are_two(emulator):
    files = emulator.client().files
    first, second = upload(emulator, "same", "batch"), upload(emulator, "same", "batch")
    upload(emulator, "other")
    assert [file.id for file in files.list(purpose="batch", limit=1)] == [second, first]
    assert files.content(first).text == "same"
    assert files.delete(first).deleted
    with pytest.raises(openai.NotFoundError):
        files.content(first)
    with pytest.raises(openai.BadRequestError, match="its purpose is batch, not fine-tune"):
        create(emulator, training_file=second)


def test_what_becomes_of_the_next_jobs_can_be_said(emulator, clock):
    emulator.next_job(status="failed", error={"code": "quota", "message": "Enough.", "param": None})
    emulator.next_job(hold="reticulating")
    failing, held = create(emulator), create(emulator)
    clock.now += SECONDS
    assert retrieve(emulator, failing).error.message == "Enough."
    assert retrieve(emulator, held).status == "reticulating"
    emulator.set_job(held.id, "succeeded")
    assert retrieve(emulator, held).fine_tuned_model
    assert [job["id"] for job in emulator.jobs()] == [held.id, failing.id]


def test_a_fault_hits_only_the_requests_it_is_meant_for_and_only_so_often(emulator):
    job = create(emulator)
    emulator.fault("GET", f"{JOBS}/[^/]+$", times=2, status=503, retry_after=7, code="busy")
    for _ in range(2):
        with pytest.raises(openai.InternalServerError) as caught:
            retrieve(emulator, job)
        assert (caught.value.response.headers["retry-after"], caught.value.code) == ("7", "busy")
        emulator.client().fine_tuning.jobs.list()
    assert retrieve(emulator, job).id == job.id
    assert len(emulator.requests("GET", f"{JOBS}/{job.id}")) == 3


@pytest.mark.parametrize(
    ("fault", "error", "made"),
    [
        ({"drop": "before"}, openai.APIConnectionError, 0),
        ({"drop": "after"}, openai.APIConnectionError, 1),
        ({"delay": 600}, openai.APITimeoutError, 1),
    ],
)
def test_an_answer_is_lost_before_or_after_the_work(emulator, fault, error, made):
    file = emulator.upload()
    emulator.fault("POST", JOBS, **fault)
    with pytest.raises(error):
        emulator.client().with_options(timeout=1).fine_tuning.jobs.create(model=BASE_MODEL, training_file=file)
    wait_until(lambda: len(emulator.jobs()) == made)


def test_it_says_that_it_is_a_fake_and_logs_requests_without_what_they_say(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "local.openai_emulator"), serve(tmp_path, token="the-key") as url:
        with pytest.raises(openai.AuthenticationError):
            Emulator(url).client().files.list()
        list(Emulator(url, "the-key").client().fine_tuning.jobs.list(metadata={"secret": "xylophone"}))
        assert "fake" in httpx.get(url.removesuffix("/v1") + "/health").json()["fake"]
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("local.openai_emulator")]
    assert lines[0].startswith("this is a fake")
    assert lines[1:] == ["GET /v1/files", f"GET {JOBS}"]


def test_a_tuned_model_shows_its_nearest_examples_to_the_base_model(tmp_path, llm):
    words = ("red", "green", "blue", "car", "boat", "plane")
    lines = [conversation(f"{one} {two}{' and so on' * 20}", f"{one}!") for one in words for two in words if one != two]
    lines.append(conversation("red boat plane", "hidden", weight=0))
    llm.reply("yes", times=None)
    with serve(tmp_path, llm.base_url(), job_seconds=0) as url:
        emulator = Emulator(url)
        job = create(emulator, model="gpt-4o-mini", training_file=upload(emulator, "\n".join(lines)))
        tuned = retrieve(emulator, job).fine_tuned_model
        asked: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "red boat plane"}]
        chats = emulator.client().chat.completions
        answer = chats.create(model=tuned, messages=asked)
        assert (answer.model, answer.choices[0].message.content) == (tuned, "yes")
        sent = chat_requests(llm)[-1]
        assert (sent["model"], sent["messages"][0], sent["messages"][-1]) == ("gpt-4o-mini", *asked)
        turns = sent["messages"][1:-1]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4
        for question, reply in zip(turns[::2], turns[1::2], strict=True):
            assert len({"red", "boat", "plane"} & set(question["content"].split())) == 2
            assert len(question["content"]) == 100
            assert reply["content"] == question["content"].split()[0] + "!"
        chats.create(model="gpt-4o-mini", messages=asked, temperature=0.5)
        assert chat_requests(llm)[-1] == {"model": "gpt-4o-mini", "messages": asked, "temperature": 0.5}
        with pytest.raises(openai.NotFoundError):
            chats.create(model="ft:unknown", messages=asked)


@contextmanager
def process(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], Emulator]]:
    command = [sys.executable, "-m", "local.openai_emulator", "--port", "0", "--folder", str(folder), *more]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as started:
        try:
            assert started.stderr is not None
            ready = next(line for line in started.stderr if "ready on " in line)
            yield started, Emulator(ready.split()[-1])
        finally:
            started.kill()


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    with process(tmp_path) as (first, emulator):
        emulator.next_job(hold="running")
        held, made = create(emulator), create(emulator, metadata={"run": "1"})
        emulator.set_job(made.id, "succeeded")
        made, told = retrieve(emulator, made), events(emulator, made)
        first.kill()
        first.wait()
    with process(tmp_path) as (second, emulator):
        assert retrieve(emulator, made) == made
        assert events(emulator, made) == told
        assert retrieve(emulator, held).status == "running"
        assert made.fine_tuned_model in [model.id for model in emulator.client().models.list()]
        assert emulator.client().files.content(made.training_file).content == TRAINING.read_bytes()
        second.terminate()
        assert second.wait(timeout=30) == 0
