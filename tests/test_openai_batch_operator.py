"""The batch operator and its trigger, against the emulator over real HTTP; a scripted model answers behind it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred

from include.batch_api import operator as batch_operator
from include.batch_api import requests as batch_requests
from include.batch_api.api import BatchApi, OpenAIBatchTrigger
from include.batch_api.operator import OpenAIBatchOperator
from include.batch_api.rounds import Rounds
from include.common.shared_total import SharedTotal
from include.common.storage import storage_path
from include.jobs import start
from tests.conftest import KEY
from tests.emulator import BATCHES, Emulator
from tests.killing import Killed, killing
from tests.stack import wait_until
from tests.storages import on_storage


class Model(BaseHTTPRequestHandler):
    """Answers each question with itself in capitals; "503, 429: text" meets these statuses first, in turn."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][0]["content"]
        statuses = [int(status) for status in question.partition(":")[0].split(",")] if ":" in question else []
        status = [*statuses, 200][min(self.asked[question], len(statuses))]
        self.asked[question] += 1
        message = {"role": "assistant", "content": question.upper()}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        content = json.dumps(answer if status == 200 else {"error": {"message": "no\nway", "code": "odd"}}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    from local.openai_emulator import serve

    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as model:
        threading.Thread(target=model.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        upstream = f"http://127.0.0.1:{model.server_port}/v1"
        with serve(tmp_path_factory.mktemp("emulator"), upstream=upstream, token=KEY) as url:
            yield Emulator(url, KEY)
        model.shutdown()


@pytest.fixture
def provider(server: Emulator, storage: Path, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", server.connection())
    monkeypatch.setattr(start, "SETTLE_S", 0.3)
    return server


class Task:
    """A task instance outside Airflow, with questions that no other test asks."""

    def __init__(self, storage: Path, run_id: str, **arguments: Any) -> None:
        self.storage = storage
        self.mark = run_id
        self.arguments = {"poke_interval": 0.03, "timeout": 300.0} | arguments
        self.xcoms: dict[str, Any] = {}
        self.ti = SimpleNamespace(
            dag_id="batches",
            run_id=run_id,
            task_id="answer",
            map_index=-1,
            max_tries=2,
            xcom_push=lambda key, value: self.xcoms.update({key: value}),
        )
        self.ask("a", "b", "c")

    def question(self, text: str) -> str:
        return f"{text} {self.mark}"

    def ask(self, *texts: str) -> None:
        lines = []
        for number, text in enumerate(texts):
            messages = [{"role": "user", "content": self.question(text)}]
            lines.append(json.dumps({"custom_id": f"q{number}", "body": {"model": "m", "messages": messages}}))
        self.write("\n".join(lines))

    def write(self, content: str) -> None:
        self.storage.mkdir(parents=True, exist_ok=True)
        (self.storage / "in.jsonl").write_text(content)

    def operator(self) -> OpenAIBatchOperator:
        urls = {name: str(storage_path(f"{file}.jsonl")) for name, file in (("input_url", "in"), ("output_url", "out"))}
        return OpenAIBatchOperator(task_id="answer", **urls | self.arguments)

    def attempt(self) -> list[Any]:
        """One try, over all its waits; the results: an answer's text, or an error's status or code."""
        work = lambda: self.operator().execute({"ti": self.ti})  # noqa: E731
        while True:
            try:
                work()
                return self.results()
            except TaskDeferred as deferred:
                path, arguments = deferred.trigger.serialize()
                assert path == "include.batch_api.api.OpenAIBatchTrigger"
                assert OpenAIBatchTrigger(**arguments).serialize() == (path, arguments)
                event = asyncio.run(only_event(OpenAIBatchTrigger(**json.loads(json.dumps(arguments)))))
                work = lambda event=event: self.operator().execute_complete({"ti": self.ti}, event)  # noqa: E731

    def results(self) -> list[Any]:
        lines = [json.loads(line) for line in (self.storage / "out.jsonl").read_bytes().split(b"\n")[:-1]]
        assert [line["custom_id"] for line in lines] == [f"q{number}" for number in range(len(lines))]
        return [
            line["error"]["status"] or line["error"]["code"]
            if line["error"]
            else line["response"]["choices"][0]["message"]["content"].partition(f" {self.mark.upper()}")[0]
            for line in lines
        ]

    def asked(self) -> list[int]:
        """How often the model was asked each question, in order."""
        lines = map(json.loads, (self.storage / "in.jsonl").read_bytes().split(b"\n"))
        return [Model.asked[line["body"]["messages"][0]["content"]] for line in lines]

    def clear(self) -> None:
        self.ti.max_tries += 1


async def only_event(trigger: OpenAIBatchTrigger) -> dict[str, Any]:
    (event,) = [event async for event in trigger.run()]
    return json.loads(json.dumps(event.payload))


@pytest.fixture
def task(provider: Emulator, storage: Path, request: pytest.FixtureRequest) -> Callable[..., Task]:
    return lambda **arguments: Task(storage, f"{request.node.name} {time.time()}".replace(":", " "), **arguments)


def batches_of(provider: Emulator, task: Task) -> list[dict[str, Any]]:
    """The oldest first."""
    return [b for b in reversed(provider.batches()) if b["metadata"]["airflow_run_id"] == task.ti.run_id[:500]]


@pytest.mark.parametrize("deferrable", [True, False])
def test_every_request_is_answered_in_the_order_of_the_input(task, provider, deferrable):
    batch = task(deferrable=deferrable)
    assert batch.attempt() == ["A", "B", "C"]
    (made,) = batches_of(provider, batch)
    assert batch.xcoms["job_id"] == made["id"]
    assert batch.xcoms["job_url"] == f"{provider.url}/batches/{made['id']}"
    assert batch.xcoms["counts"] == {"answered": 3, "failed": 0}
    assert batch.xcoms["batches"] == [made["id"]]
    batch.clear()
    uploads = len(provider.requests("POST", "/v1/files"))
    assert batch.attempt() == ["A", "B", "C"]
    assert (batch.asked(), len(provider.requests("POST", "/v1/files"))) == ([1, 1, 1], uploads)


@on_storage("disk", "s3")
def test_only_what_another_try_may_mend_is_sent_again_and_only_so_often(task, provider):
    batch = task()
    batch.ask("a", "400:bad", "503:once", "429,500:twice", "503,503,503:thrice")
    assert batch.attempt() == ["A", 400, "503:ONCE", "429,500:TWICE", 503]
    assert batch.asked() == [1, 1, 2, 3, 3]
    assert [made["request_counts"]["total"] for made in batches_of(provider, batch)] == [5, 3, 2]
    batch.clear()
    assert batch.attempt()[-1] == "503,503,503:THRICE"
    assert batch.asked() == [1, 1, 2, 3, 4]


def test_an_expired_batch_keeps_what_was_done_and_the_rest_is_sent_again(task, provider):
    provider.next_batch(status="expired", after=2)
    batch = task()
    assert batch.attempt() == ["A", "B", "C"]
    assert batch.asked() == [1, 1, 1]
    assert [made["status"] for made in batches_of(provider, batch)] == ["expired", "completed"]


def test_a_cancelled_batch_fails_the_task_until_it_is_cleared_and_its_answers_are_kept(task, provider):
    provider.next_batch(status="cancelled", after=1)
    batch = task()
    for _ in range(2):  # a retry starts nothing new
        with pytest.raises(AirflowFailException, match="was cancelled"):
            batch.attempt()
    assert batch.asked() == [1, 0, 0]
    batch.clear()
    assert batch.attempt() == ["A", "B", "C"]
    assert batch.asked() == [1, 1, 1]


def test_a_batch_that_takes_its_time_to_be_cancelled_is_waited_for_before_the_rest_is_sent(task, provider):
    provider.next_batch(hold="cancelling", after=1)
    batch = task(wait_for_completion=False)
    batch.attempt_id = batch.operator().execute({"ti": batch.ti})
    wait_until(lambda: provider.client().batches.retrieve(batch.attempt_id).status == "cancelling")
    batch.clear()
    batch.arguments["wait_for_completion"] = True
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(batch.attempt()))
    thread.start()
    wait_until(lambda: len(provider.requests("GET", f"{BATCHES}/{batch.attempt_id}")) > 5)
    provider.set_batch(batch.attempt_id, "cancelled")
    thread.join(15)
    assert found == [["A", "B", "C"]]
    assert batch.asked() == [1, 1, 1]


def test_a_batch_that_the_provider_refuses_fails_with_its_reason_and_its_line(task, provider):
    error = {"code": "token_limit_exceeded", "message": "too\nmany", "line": 2}
    provider.next_batch(status="failed", error=error)
    batch = task()
    with pytest.raises(AirflowFailException, match=r"failed: line 2: too many \(code token_limit_exceeded\)"):
        batch.attempt()
    batch.clear()
    assert batch.attempt() == ["A", "B", "C"]


def test_a_changed_input_asks_only_what_is_new(task):
    batch = task()
    batch.attempt()
    batch.ask("a", "x", "c")
    batch.clear()
    assert batch.attempt() == ["A", "X", "C"]
    assert batch.asked() == [1, 1, 1]


def test_when_the_time_is_over_the_batch_is_cancelled_and_a_clear_goes_on_with_the_rest(task, provider):
    provider.next_batch(hold="in_progress", after=2)
    batch = task(timeout=1.0, deferrable=False)
    with pytest.raises(AirflowFailException, match=r"has not ended in time\. It was cancelled"):
        batch.attempt()
    batch.arguments["timeout"] = 300.0
    batch.clear()
    assert batch.attempt() == ["A", "B", "C"]
    assert batch.asked() == [1, 1, 1]


def test_a_worker_told_to_stop_cancels_the_batch_and_the_next_try_sends_the_rest(task, provider):
    provider.next_batch(hold="in_progress", after=1)
    batch = task(deferrable=False)
    operator, failures = batch.operator(), []

    def run() -> None:
        try:
            operator.execute({"ti": batch.ti})
        except AirflowFailException as error:
            failures.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: "job_id" in batch.xcoms and batch.asked()[0] == 1)
    operator.on_kill()
    thread.join(10)
    assert "was cancelled" in failures[0]
    assert batch.attempt() == ["A", "B", "C"]
    assert batch.asked() == [1, 1, 1]


CUT_POINTS = [
    (batch_operator, "write_upload", 1, "after"),
    (batch_operator, "upload_once", 1, "after"),
    (start, "write_record", 1, "after"),
    (BatchApi, "create", 1, "before"),
    (BatchApi, "create", 1, "after"),
    (start, "write_record", 2, "before"),
    (start, "write_record", 3, "after"),
    (BatchApi, "relay_news", 1, "after"),
    (BatchApi, "download", 1, "before"),
    (BatchApi, "download", 1, "after"),
    (BatchApi, "download", 2, "after"),
    (Rounds, "close", 1, "before"),
    (Rounds, "close", 1, "after"),
    (batch_operator, "upload_once", 2, "before"),
    (BatchApi, "create", 2, "before"),
    (BatchApi, "create", 2, "after"),
    (BatchApi, "download", 3, "after"),
    (Rounds, "close", 2, "after"),
    (batch_requests.Answers, "write", 1, "before"),
    (batch_requests.Answers, "write", 1, "after"),
]


@pytest.mark.parametrize(("owner", "name", "call", "when"), CUT_POINTS)
def test_a_worker_killed_at_this_point_leaves_every_request_answered_once(task, provider, owner, name, call, when):
    batch = task(deferrable=False)
    batch.ask("a", "503:once", "c")
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, owner, name, call, when)
        with pytest.raises(Killed):
            batch.attempt()
    assert batch.attempt() == ["A", "503:ONCE", "C"]
    assert batch.asked() == [1, 2, 1]
    assert len(batches_of(provider, batch)) == 2


@pytest.mark.parametrize(("fault", "creations"), [({"drop": "after"}, 1), ({"status": 503}, 2)])
def test_a_lost_answer_to_the_creation_is_looked_up_not_repeated(task, provider, fault, creations):
    before = len(provider.requests("POST", BATCHES))
    provider.fault("POST", f"{BATCHES}$", **fault)
    batch = task()
    if creations > 1:
        with pytest.raises(AirflowException, match="The next try looks for it again"):
            batch.attempt()
    assert batch.attempt() == ["A", "B", "C"]
    assert batch.asked() == [1, 1, 1]
    assert len(provider.requests("POST", BATCHES)) - before == creations


def body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "x"}]} | more


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no requests"),
        (["{}"], r"line 1: it is not of the form \{"),
        (["[1]"], r"line 1: it is not of the form \{"),
        ([{"custom_id": "a", "body": body()}, "{half"], "line 2: it is not JSON"),
        ([{"custom_id": "a", "body": body()}] * 2, "line 2: custom_id 'a' is also in line 1"),
        ([{"custom_id": half, "body": body()} for half in ("\ud83d", "\ude9a")], "line 2: custom_id '\ufffd' is also"),
        ([{"custom_id": "", "body": body()}], "line 1: custom_id must be a string"),
        ([{"custom_id": 7, "body": body()}], "line 1: custom_id must be a string"),
        ([{"custom_id": "a", "body": body(model="")}], "line 1: body.model is missing"),
        ([{"custom_id": "a", "body": body(messages=[])}], "line 1: body.messages is missing"),
        ([{"custom_id": n, "body": body(model=n)} for n in "ab"], "line 2: body.model is not 'a'"),
    ],
)
def test_a_bad_input_is_named_with_its_line_before_anything_is_uploaded(task, provider, lines, message):
    uploads = len(provider.requests("POST", "/v1/files"))
    batch = task()
    batch.write("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(AirflowFailException, match=message):
        batch.attempt()
    assert len(provider.requests("POST", "/v1/files")) == uploads


def test_more_than_a_batch_takes_is_refused_before_anything_is_uploaded(task, provider, monkeypatch):
    uploads = len(provider.requests("POST", "/v1/files"))
    batch = task()
    monkeypatch.setattr(batch_requests, "LARGEST_FILE", 100)
    with pytest.raises(AirflowFailException, match="MB, the limit of a batch"):
        batch.attempt()
    monkeypatch.setattr(batch_requests, "MOST_REQUESTS", 2)
    with pytest.raises(AirflowFailException, match="has more than 2 requests"):
        batch.attempt()
    batch.arguments["input_url"] = "file:///etc/passwd"
    with pytest.raises(AirflowFailException, match="is not a file on this project's storage"):
        batch.attempt()
    assert len(provider.requests("POST", "/v1/files")) == uploads
    with pytest.raises(ValueError, match="rounds must be 1 or more"):
        task(rounds=0).operator()


def test_results_that_are_none_or_of_others_are_left_aside(task, caplog):
    batch = task()
    requests = batch_requests.check_requests(storage_path("in.jsonl"))
    first, second, third = requests
    lines = ["nonsense", "[]", '{"custom_id": ["x"]}', json.dumps({"custom_id": "stranger", "response": None})]
    good = {"custom_id": first, "response": {"status_code": 200, "body": {"choices": []}}, "error": None}
    late = {"custom_id": first, "response": None, "error": {"code": "batch_expired"}}
    bodiless = {"custom_id": second, "response": {"status_code": 200, "body": "x"}, "error": None}
    (batch.storage / "raw.jsonl").write_text("\n".join([*lines, *map(json.dumps, (good, late, bodiless))]))
    with closing(batch_requests.Answers(requests)) as answers:
        answers.add(storage_path("raw.jsonl"))
        assert answers.missing() == {second, third}
    assert "raw.jsonl, line 1, is not a result" in caplog.text


def test_the_key_is_nowhere(task, provider, logged, storage):
    batch = task()
    with pytest.raises(TaskDeferred) as deferred:
        batch.operator().execute({"ti": batch.ti})
    event = asyncio.run(only_event(deferred.value.trigger))
    operator = batch.operator()
    operator.execute_complete({"ti": batch.ti}, event)
    stored = "".join(path.read_text() for path in storage.rglob("*") if path.is_file())
    shown = [deferred.value.trigger.serialize(), event, batch.xcoms, vars(operator)]
    assert "batch_" in stored
    assert KEY not in "".join([*map(str, shown), stored, logged()])
    assert batch.question("a") not in "".join([*map(str, shown), logged()])


def test_each_batch_counts_once_within_the_connections_budgets_and_none_is_sent_beyond_them(
    task, provider, monkeypatch, storage
):
    connection = json.loads(provider.connection())
    price = {"input": 1000.0, "output": 1000.0}

    def give(**extra: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", json.dumps(connection | {"extra": extra}))

    def spent() -> float:
        return SharedTotal(("budgets", "openai_default", datetime.now(UTC).date().isoformat())).read()

    give(usd_per_million_tokens=price, budgets={"day_usd": 1.0})
    asking = task()
    asking.ask("503: a", "b", "c")
    for _ in range(2):
        assert asking.attempt() == ["503: A", "B", "C"]
        assert len(batches_of(provider, asking)) == 2
        assert spent() == pytest.approx(3 * 15 * 1000 / 1e6 / 2)

    for extra, said in (
        ({"usd_per_million_tokens": price, "budgets": {"day_usd": 0.001}}, "its budget for the day .* is used up"),
        ({"usd_per_million_tokens": price, "budgets": {"day_usd": 0.03}}, "is too small for the next"),
        ({"budgets": {"day_usd": 1.0}}, "the price of 'm' is not known"),
    ):
        give(**extra)
        refused = task()
        with pytest.raises(AirflowFailException, match=said):
            refused.attempt()
        assert batches_of(provider, refused) == []
