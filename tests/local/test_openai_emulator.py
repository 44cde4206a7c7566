"""The emulator of OpenAI's fine-tuning, through the real client over HTTP. The server behind it is a tiny fake."""

# ruff: noqa: PT018

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai  # noqa: TID253
import pytest

from local.openai_emulator import controls, jobs, models, serve
from local.openai_emulator import files as emulator_files
from tests.stack import wait_until

pytestmark = pytest.mark.one_stack

BASE = "smollm2-135m-instruct"
ROOT = Path(__file__).parents[2]
JOB_SECONDS = 0.3
WORDS = ("red", "green", "blue", "car", "boat", "plane")
QUESTIONS = [f"{one} {two}" for one in WORDS for two in WORDS if one != two]


class Upstream(BaseHTTPRequestHandler):
    """Counts known words as its embeddings, and answers every question with "yes"."""

    protocol_version = "HTTP/1.1"
    chats: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._answer({"data": [{"id": BASE}, {"id": "wordllama-256"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/embeddings":
            vectors = [[text.split().count(word) for word in WORDS] for text in body["input"]]
            self._answer({"data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]})
        else:
            self.chats.append(body)
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}
            self._answer({"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice]})

    def _answer(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Emulator:
    """A running emulator, as a client and as a test sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = openai.OpenAI(base_url=url, api_key="any", max_retries=0)
        self.jobs = self.client.fine_tuning.jobs

    def control(self, method: str, path: str, body: Any = None) -> Any:
        response = httpx.request(method, self.url.removesuffix("v1") + f"emulator/{path}", json=body)
        response.raise_for_status()
        return response.json()

    def upload(self, content: bytes | None = None, purpose: Any = "fine-tune", name: str = "training.jsonl") -> str:
        return self.client.files.create(file=(name, content or training()), purpose=purpose).id

    def create(self, **settings: Any) -> Any:
        return self.jobs.create(**{"model": BASE, "training_file": self.upload()} | settings)

    def wait(self, job: str, status: str = "succeeded") -> Any:
        return wait_for(lambda: (found := self.jobs.retrieve(job)).status == status and found)

    def messages(self, job: str) -> list[str]:
        """The events, the oldest first."""
        return [event.message for event in reversed(list(self.jobs.list_events(job, limit=7)))]


def example(question: str, answer: str = "ok", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer} | more]
    return {"messages": [{"role": "system", "content": "Be brief."}, *turns]}


def lines(examples: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in examples)


def training() -> bytes:
    return lines([example(question, f"the {question}") for question in QUESTIONS])


def wait_for(check: Callable[[], Any], timeout: float = 300) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := check()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    Upstream.chats = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@contextmanager
def emulator_of(folder: Path, upstream: str | None, job_seconds: float, **more: Any) -> Iterator[Emulator]:
    with serve(folder, upstream, job_seconds, **more) as url:
        yield Emulator(url)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, upstream: str) -> Iterator[Emulator]:
    """Its jobs take a third of a second."""
    with emulator_of(tmp_path_factory.mktemp("quick"), upstream, JOB_SECONDS) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, upstream: str) -> Iterator[Emulator]:
    """Its jobs take an hour."""
    with emulator_of(tmp_path_factory.mktemp("slow"), upstream, 3600) as emulator:
        yield emulator


@dataclass
class Clock:
    """The emulator's clock, for as long as a test has it: it stands still unless the test sets it."""

    now: float

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    standing = Clock(time.time())
    for module in (jobs, models, emulator_files, controls):
        monkeypatch.setattr(module, "time", standing)
    return standing


def test_a_job_lives_through_all_statuses_and_leaves_a_model_and_results(quick: Emulator, clock: Clock) -> None:
    start = clock.now
    validation = quick.upload(lines([example("something else")]))
    created = quick.create(validation_file=validation, suffix="house", seed=7, metadata={"run": "1"})
    assert created.status == "validating_files"
    for tenths, status in ((0.5, "validating_files"), (1.5, "queued"), (9, "running"), (10.1, "succeeded")):
        clock.now = start + tenths * JOB_SECONDS / 10
        job = quick.jobs.retrieve(created.id)
        assert job.status == status
        assert (job.estimated_finish is not None) == (status == "running")
        assert (job.finished_at is not None) == (status == "succeeded")
    assert job.id.startswith("ftjob-") and len(job.id) == 30
    assert job.fine_tuned_model.startswith(f"ft:{BASE}:") and job.fine_tuned_model.endswith(f":house:{job.id[6:14]}")
    assert (job.seed, job.metadata, job.hyperparameters.n_epochs) == (7, {"run": "1"}, 3)
    assert job.trained_tokens > 0 and job.trained_tokens % 3 == 0
    (results,) = job.result_files
    table = quick.client.files.content(results).text.splitlines()
    assert table[0] == "step,train_loss,valid_loss" and 10 <= len(table) <= 32
    stored = quick.client.files.retrieve(results)
    assert (stored.purpose, stored.bytes) == ("fine-tune-results", len("\n".join(table)) + 1)
    assert results in [file.id for file in quick.client.files.list(purpose="fine-tune-results")]
    assert job.fine_tuned_model in [model.id for model in quick.client.models.list()]


def test_events_tell_the_life_of_a_job_and_keep_their_ids(quick: Emulator) -> None:
    job = quick.create()
    early = {event.id for event in quick.jobs.list_events(job.id)}
    quick.wait(job.id)
    events = list(quick.jobs.list_events(job.id, limit=7))
    messages = [event.message for event in reversed(events)]
    assert messages[0] == f"Created fine-tuning job: {job.id}"
    assert messages[-1] == "The job has successfully completed" and "New fine-tuned model created" in messages[-2]
    assert messages.index("Files validated, moving job to queued state") < messages.index("Fine-tuning job started")
    assert [event.level for event in events if "are recommended" in event.message] == ["warn"]
    steps = [event for event in events if event.type == "metrics"]
    assert 1 < len(steps) <= 31 and steps[0].message.startswith("Step 90/90: training loss=")
    assert steps[0].data["train_loss"] < steps[-1].data["train_loss"]
    assert early and early <= {event.id for event in events} and len({event.id for event in events}) == len(events)


def test_jobs_are_listed_the_newest_first_by_metadata_over_several_pages(slow: Emulator) -> None:
    file = slow.upload()
    ids = [slow.create(training_file=file, metadata={"key": "a b&c", "n": str(n)}).id for n in range(5)]
    other = slow.create(training_file=file, metadata={"key": ""}).id
    without = slow.create(training_file=file).id
    assert [job.id for job in slow.jobs.list(metadata={"key": "a b&c"}, limit=2)] == ids[::-1]
    assert [job.id for job in slow.jobs.list(metadata={"key": "a b&c", "n": "3"})] == [ids[3]]
    assert [job.id for job in slow.jobs.list(metadata={"key": ""})] == [other]
    assert [job.id for job in slow.jobs.list(metadata={"nothing": "x"})] == []
    assert without in [job.id for job in slow.jobs.list(extra_query={"metadata": "null"})]
    assert other not in [job.id for job in slow.jobs.list(extra_query={"metadata": "null"})]
    first = slow.jobs.list(limit=3)
    assert first.has_more and [job.id for job in first.data] == [without, other, ids[4]]
    with pytest.raises(openai.BadRequestError):
        slow.jobs.list(after="ftjob-0")


def test_a_bad_line_fails_the_job_and_is_named(quick: Emulator) -> None:
    bad = quick.create(training_file=quick.upload(training() + b'{"messages": []}\n'))
    job = quick.wait(bad.id, "failed")
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert f"line {len(QUESTIONS) + 1}" in job.error.message
    assert (job.fine_tuned_model, job.trained_tokens, job.result_files) == (None, None, [])
    assert quick.messages(job.id)[-1].startswith("The job failed: ") and len(quick.messages(job.id)) == 3
    validation = quick.upload(lines([example(QUESTIONS[0])]), name="validation.jsonl")
    job = quick.wait(quick.create(validation_file=validation).id, "failed")
    assert job.error.code == "invalid_validation_file" and "validation.jsonl, line 1" in job.error.message


def test_a_job_can_be_cancelled_until_it_has_ended(slow: Emulator) -> None:
    job = slow.jobs.cancel(slow.create().id)
    assert job.status == "cancelled" and job.finished_at and not job.fine_tuned_model
    assert slow.messages(job.id)[-1] == "The job has been cancelled"
    with pytest.raises(openai.BadRequestError, match="it can't cancel"):
        slow.jobs.cancel(job.id)
    with pytest.raises(openai.NotFoundError):
        slow.jobs.cancel("ftjob-0")


def test_a_job_can_be_paused_and_resumed(slow: Emulator, quick: Emulator, clock: Clock) -> None:
    waiting = slow.create()
    with pytest.raises(openai.BadRequestError, match="it can't pause"):
        slow.jobs.pause(waiting.id)
    job = quick.create()
    clock.now += JOB_SECONDS / 2
    assert quick.jobs.pause(job.id).status == "paused"
    clock.now += 10 * JOB_SECONDS
    assert quick.jobs.retrieve(job.id).status == "paused"
    assert quick.jobs.resume(job.id).status == "running"
    clock.now += JOB_SECONDS
    assert quick.jobs.retrieve(job.id).status == "succeeded"
    messages = quick.messages(job.id)
    assert messages.index("Fine-tuning job paused") < messages.index("Fine-tuning job resumed") < len(messages) - 2
    assert list(quick.jobs.checkpoints.list(job.id)) == []


def test_files_are_kept_listed_and_deleted_and_equal_ones_are_two(slow: Emulator) -> None:
    first, second = slow.upload(b"same", "batch"), slow.upload(b"same", "batch")
    assert first != second and first.startswith("file-") and len(first) == 29
    assert slow.client.files.content(first).content == b"same"
    assert [file.id for file in slow.client.files.list(purpose="batch", limit=1)] == [second, first]
    assert [file.id for file in slow.client.files.list(purpose="batch", order="asc")] == [first, second]
    assert slow.client.files.delete(first).deleted
    with pytest.raises(openai.NotFoundError):
        slow.client.files.retrieve(first)
    assert slow.client.files.retrieve(second).filename == "training.jsonl"


def test_a_file_that_is_too_large_is_refused_while_it_comes(
    slow: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator_files, "LARGEST_FILE", 1000)
    with pytest.raises(openai.APIStatusError) as caught:
        slow.upload(b"x" * 100_000, "batch")
    assert caught.value.status_code == 413


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "gpt-0"}, 404, "model"),
        ({"model": "wordllama-256"}, 404, "model"),
        ({"training_file": "file-0"}, 400, "training_file"),
        ({"validation_file": "file-0"}, 400, "validation_file"),
        ({"suffix": "x" * 65}, 400, "suffix"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata.k"),
        ({"metadata": {"k": 1}}, 400, "metadata.k"),
        ({"method": {"type": "dpo"}}, 400, "method.type"),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs"),
    ],
)
def test_a_bad_job_is_refused_with_the_field_at_fault(
    slow: Emulator, change: dict[str, Any], status: int, param: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        slow.create(**change)
    assert (caught.value.status_code, caught.value.param) == (status, param)


def test_a_file_for_another_purpose_cannot_be_learned_from(slow: Emulator) -> None:
    with pytest.raises(openai.BadRequestError, match="not fine-tune"):
        slow.create(training_file=slow.upload(purpose="batch"))


def test_many_jobs_created_at_once_are_all_kept(slow: Emulator) -> None:
    file = slow.upload()
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda n: slow.create(training_file=file, metadata={"many": str(n)}), range(24)))
    listed = [job for job in slow.jobs.list(limit=10) if "many" in (job.metadata or {})]
    assert {job.id for job in listed} == {job.id for job in jobs} and len(listed) == 24


def test_a_tuned_model_shows_its_nearest_examples_to_the_base_model(quick: Emulator) -> None:
    examples = [example(f"{question}{' and so on' * 20}", f"the {question}") for question in QUESTIONS]
    hidden = example("red boat plane", "hidden", weight=0)
    hidden["messages"][1:1] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 1}]
    model = quick.wait(quick.create(training_file=quick.upload(lines([*examples, hidden]))).id).fine_tuned_model
    asked: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "red boat plane"}]
    answer = quick.client.chat.completions.create(model=model, messages=asked)
    assert answer.model == model and answer.choices[0].message.content == "yes"
    sent = Upstream.chats[-1]
    assert sent["model"] == BASE
    assert sent["messages"][0] == asked[0] and sent["messages"][-1] == asked[1]
    turns = sent["messages"][1:-1]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4
    shown = [turn["content"] for turn in turns]
    assert all(len({"red", "boat", "plane"} & set(question.split())) == 2 for question in shown[::2])
    assert shown[1::2] == [f"the {' '.join(question.split()[:2])}" for question in shown[::2]]
    assert all(len(question) == 100 for question in shown[::2])


def test_the_base_model_is_passed_on_unchanged_and_a_deleted_model_is_gone(quick: Emulator) -> None:
    asked: list[Any] = [{"role": "user", "content": "red boat"}]
    quick.client.chat.completions.create(model=BASE, messages=asked, temperature=0.5)
    assert Upstream.chats[-1] == {"model": BASE, "messages": asked, "temperature": 0.5}
    vectors = quick.client.embeddings.create(model="wordllama-256", input=["red"], encoding_format="float")
    assert vectors.data[0].embedding[0] == 1
    model = quick.wait(quick.create(suffix="a/b").id).fine_tuned_model
    assert quick.client.models.retrieve(model).id == model
    assert quick.client.models.delete(model).deleted
    for call in (quick.client.models.retrieve, quick.client.models.delete):
        with pytest.raises(openai.NotFoundError):
            call(model)
    with pytest.raises(openai.NotFoundError):
        quick.client.chat.completions.create(model=model, messages=asked)


def test_without_a_server_behind_it_jobs_run_and_questions_are_refused(tmp_path: Path) -> None:
    with emulator_of(tmp_path, "http://127.0.0.1:9/v1", 0.05) as alone:
        assert [model.id for model in alone.client.models.list()] == [BASE]
        model = alone.wait(alone.create().id).fine_tuned_model
        for name in (BASE, model):
            with pytest.raises(openai.InternalServerError, match="did not answer"):
                alone.client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}])


def test_with_a_token_only_that_key_is_accepted(tmp_path: Path) -> None:
    with emulator_of(tmp_path, None, 1, token="the-key") as emulator:
        with pytest.raises(openai.AuthenticationError):
            emulator.client.files.list()
        assert list(emulator.client.with_options(api_key="the-key").files.list()) == []


def test_what_becomes_of_the_next_jobs_can_be_said(quick: Emulator) -> None:
    error = {"code": "server_error", "message": "No room.", "param": None}
    quick.control("POST", "jobs", {"outcome": {"status": "failed", "error": error}})
    quick.control("POST", "jobs", {"outcome": {"hold": "reticulating"}})
    failing, held = quick.create(), quick.create()
    assert held.status == "reticulating"
    job = quick.wait(failing.id, "failed")
    assert (job.error.code, job.error.message) == ("server_error", "No room.")
    assert any(message.startswith("Step ") for message in quick.messages(job.id))
    assert quick.jobs.retrieve(held.id).status == "reticulating"
    assert quick.control("POST", f"jobs/{held.id}", {"status": None})["status"] == "validating_files"
    quick.wait(held.id)


def test_a_job_can_be_given_any_status(slow: Emulator) -> None:
    made, failed = slow.create(), slow.create()
    assert slow.control("POST", f"jobs/{made.id}", {"status": "running"})["status"] == "running"
    assert slow.messages(made.id)[-1] == "Fine-tuning job started"
    slow.control("POST", f"jobs/{made.id}", {"status": "succeeded"})
    job = slow.jobs.retrieve(made.id)
    assert job.fine_tuned_model and job.trained_tokens and job.finished_at
    assert slow.messages(made.id)[-1] == "The job has successfully completed"
    error = {"code": "quota", "message": "Enough.", "param": None}
    slow.control("POST", f"jobs/{failed.id}", {"status": "failed", "error": error})
    assert slow.jobs.retrieve(failed.id).error.message == "Enough."
    assert {job["id"] for job in slow.control("GET", "jobs")["data"]} >= {made.id, failed.id}
    with pytest.raises(httpx.HTTPStatusError):
        slow.control("POST", f"jobs/{made.id}", {"status": "running"})


def test_faults_hit_the_requests_that_they_are_meant_for(slow: Emulator) -> None:
    job = slow.create()
    fault = {"method": "GET", "path": "/v1/fine_tuning/jobs/[^/]+$", "times": 2}
    slow.control("POST", "faults", fault | {"status": 503, "retry_after": 7, "code": "busy", "message": "Busy."})
    for _ in range(2):
        with pytest.raises(openai.InternalServerError, match="Busy") as caught:
            slow.jobs.retrieve(job.id)
        assert caught.value.response.headers["retry-after"] == "7" and caught.value.code == "busy"
        slow.jobs.list(limit=1)
    assert slow.jobs.retrieve(job.id).id == job.id
    slow.control("POST", "faults", {"status": 500})
    slow.control("DELETE", "faults")
    slow.jobs.list(limit=1)


@pytest.mark.parametrize(("drop", "made"), [("before", 0), ("after", 1)])
def test_a_connection_is_dropped_before_or_after_the_work(slow: Emulator, drop: str, made: int) -> None:
    file = slow.upload()
    slow.control("POST", "faults", {"method": "POST", "path": "/v1/fine_tuning/jobs", "drop": drop})
    with pytest.raises(openai.APIConnectionError):
        slow.create(training_file=file, metadata={"drop": drop})
    assert len(list(slow.jobs.list(metadata={"drop": drop}))) == made
    assert slow.control("GET", "requests")["data"][-2]["status"] is None


@pytest.mark.parametrize(("delay", "made"), [("delay_before", 0), ("delay", 1)])
def test_an_answer_is_delayed_before_or_after_the_work(slow: Emulator, delay: str, made: int) -> None:
    file = slow.upload()
    slow.control("POST", "faults", {"method": "POST", "path": "/v1/fine_tuning/jobs", delay: 3})
    with pytest.raises(openai.APITimeoutError):
        slow.client.with_options(timeout=0.4).fine_tuning.jobs.create(
            model=BASE, training_file=file, metadata={"delay": delay}
        )
    wait_for(lambda: len(list(slow.jobs.list(metadata={"delay": delay}))) == made)


def test_requests_are_listed_and_logged_without_what_they_say(slow: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "local.openai_emulator"):
        slow.create(metadata={"secret": "xylophone"})
        list(slow.jobs.list(metadata={"secret": "xylophone"}))
        path = "/v1/fine_tuning/jobs"
        expected = ["POST /v1/files 200", f"POST {path} 200", f"GET {path} 200"]

        def said() -> list[str]:
            lines = [record.getMessage() for record in caplog.records if record.name == "local.openai_emulator"]
            return [line for line in lines if not line.endswith("dropped")]  # by an earlier test's impatient client

        # A request is noted when its answer is on its way, and so perhaps after it has come.
        wait_until(lambda: said() == expected)
    requests = [request | {"time": 0} for request in slow.control("GET", "requests")["data"]]
    assert {"method": "GET", "path": path, "status": 200, "time": 0} in requests


@contextmanager
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Emulator]]:
    command = [sys.executable, "-m", "local.openai_emulator", "--port", "0", "--folder", str(folder)]
    with subprocess.Popen(
        [*command, "--job-seconds", "3600"], cwd=ROOT, env={**os.environ}, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            assert started.stderr is not None
            ready = next(line for line in started.stderr if "ready on " in line)
            yield started, Emulator(ready.split()[-1])
        finally:
            started.kill()


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with process(tmp_path / "new") as (first, emulator):
        job = emulator.jobs.cancel(emulator.create(metadata={"run": "1"}).id)
        running = emulator.create(training_file=job.training_file)
        events = [event.id for event in emulator.jobs.list_events(job.id)]
        first.send_signal(signal.SIGKILL)
        first.wait()
    with process(tmp_path / "new") as (second, emulator):
        assert emulator.jobs.retrieve(job.id) == job
        assert emulator.jobs.retrieve(running.id).created_at == running.created_at
        assert [event.id for event in emulator.jobs.list_events(job.id)] == events
        assert emulator.client.files.content(job.training_file).content == training()
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=300) == 0
