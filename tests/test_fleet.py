"""The product on a fleet: PostgreSQL, Celery on Valkey, S3, and two workers that share no disk. `make test SCALE=1`.

Each kill is a node's death: all processes of a worker at once, without a word. What is paid is what the scripted model
and the emulator of the provider have counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from include.messages.contract import REPLIES, STREAM_REQUESTS, new_request
from local.demo import Demo
from local.environment import PROJECT
from tests.conftest import template_dags
from tests.emulator import Emulator
from tests.fleet import BUCKET, Fleet, NoFleet, running_fleet
from tests.scripted_model import ScriptedServer
from tests.stack import wait_until

pytestmark = pytest.mark.fleet

WORKERS = ("worker-1", "worker-2")
CLIENTS = 100
IN_FLIGHT = 16  # of a task that asks a model many times at once: stream_inference, batch_inference_at_scale


@pytest.fixture(scope="module")
def fleet_of_two() -> Iterator[Fleet]:
    try:
        with running_fleet(workers=2, model_server=True) as fleet:
            yield fleet
    except NoFleet as reason:
        pytest.skip(f"NOT TESTED ON A FLEET: {reason}")


@pytest.fixture
def fleet(fleet_of_two: Fleet) -> Iterator[Fleet]:
    """The fleet, with both workers alive, before and after the test."""
    yield fleet_of_two
    for part in WORKERS:
        fleet_of_two.revive(part)


@pytest.fixture
def scripted(fleet: Fleet, model_server: ScriptedServer) -> Iterator[ScriptedServer]:
    """A fake of a model which counts its calls, behind `pydanticai_default` of the whole fleet."""
    model_server.script()
    fleet.set_pool(8)
    fleet.use_model(model_server.connection())
    yield model_server
    fleet.use_model()


def test_every_dag_succeeds_on_workers_that_share_no_disk(fleet):
    fleet.set_pool(3)  # the embedded model answers one call after the other, and a call waits for 90 s
    results = Demo(fleet, Console(force_terminal=False)).run(
        {dag_id: path for dag_id, path in template_dags().items() if path.exists()}
    )

    assert {each.dag_id: each.result for each in results if each.state != "success"} == {}
    for part in WORKERS:
        logs = fleet.home / part / "airflow" / "logs"
        assert list(logs.rglob("attempt=*.log")), f"{part} has run nothing"
        assert not (fleet.home / part / "project" / "include" / ".data").exists(), f"{part} keeps data on its disk"


def test_a_batch_whose_worker_dies_loses_no_row_and_pays_twice_only_what_was_in_flight(fleet, scripted):
    rows = 400
    lines = [json.dumps({"review_id": number, "review": f"Review {number}"}) for number in range(rows)]
    fleet.s3().put_object(Bucket=BUCKET, Key="genai/reviews.jsonl", Body="\n".join(lines).encode())
    scripted.script(latency=1.0)
    url = f"s3://aws_default@{BUCKET}/genai/reviews.jsonl"
    run_id = fleet.begin("batch_inference_at_scale", {"input": url})
    wait_until(lambda: scripted.answered().total() >= 40)
    (victim, *_) = fleet.at_work("batch_inference_at_scale", run_id, "answer")
    in_flight = max(each["in_flight"] for each in scripted.seen())
    fleet.kill(victim)

    fleet.api.succeeds("batch_inference_at_scale", run_id, 1200)
    report = fleet.api.xcom("batch_inference_at_scale", run_id, "report", "return_value")
    assert report["result"].startswith(f"{rows} rows: {rows} answered"), report
    answered = scripted.answered()
    assert answered.keys() == {f"Review {number}" for number in range(rows)}
    assert answered.total() - rows <= in_flight


def test_a_stream_whose_worker_dies_is_taken_over_long_before_airflow_misses_the_run(fleet, scripted):
    requests = [new_request(f"Message {number}") for number in range(300)]
    fleet.api.unpause("stream_inference")
    scripted.script(latency=0.5)
    fleet.kafka.send(STREAM_REQUESTS, [each.model_dump_json().encode() for each in requests])
    wait_until(lambda: scripted.answered().total() >= 40)
    dying = [run["dag_run_id"] for run in fleet.api.runs("stream_inference") if run["state"] == "running"]
    (victim,) = {part for run_id in dying for part in fleet.at_work("stream_inference", run_id, "answer_messages")}
    fleet.kill(victim)
    killed_at, paid = time.monotonic(), scripted.answered().total()
    wait_until(lambda: scripted.answered().total() > paid + IN_FLIGHT, 240)
    print(f"The stream stood still for {time.monotonic() - killed_at:.0f} s.")
    assert {fleet.api.run("stream_inference", run_id)["state"] for run_id in dying} == {"running"}

    ids = {each.request_id for each in requests}
    wait_until(lambda: ids <= replied(fleet).keys())
    answered = scripted.answered()
    assert answered.keys() == {each.text for each in requests}
    assert answered.total() - len(requests) <= IN_FLIGHT


def replied(fleet: Fleet) -> Counter[str]:
    return Counter(json.loads(message.value())["request_id"] for message in fleet.kafka.read(REPLIES))


def test_fine_tuning_whose_worker_dies_trains_one_model(fleet):
    emulator = Emulator(fleet.openai_url)
    before = len(emulator.jobs())
    run_id = fleet.begin("fine_tuning", {"evaluation_size": 4})
    wait_until(lambda: len(emulator.jobs()) > before)
    for victim in fleet.at_work("fine_tuning", run_id) or WORKERS[:1]:
        fleet.kill(victim)
        fleet.revive(victim)

    fleet.api.succeeds("fine_tuning", run_id, 1200)
    assert len(emulator.jobs()) == before + 1


def test_an_ingestion_whose_worker_dies_leaves_each_chunk_once(fleet):
    fleet.forget_vectors()
    run_id = fleet.begin("rag_pipeline", {"min_score": 0.2})
    victims = wait_until(lambda: fleet.at_work("rag_pipeline", run_id, "index_documents"))
    fleet.kill(victims[0])

    fleet.api.succeeds("rag_pipeline", run_id, 1200)
    chunks = fleet.chunks()
    assert Counter(chunks).most_common(1)[0][1] == 1
    documents = {source for source, _ in chunks}
    assert len(documents) == len(list((PROJECT / "include" / "knowledge_base").glob("*.md")))


def test_a_hundred_clients_at_once_are_answered_or_refused_and_airflow_lives_on(fleet, scripted):
    fleet.api.unpause("on_demand_inference")
    started = [ask(fleet, number) for number in range(CLIENTS)]
    ended = [(client.communicate(timeout=900), client.returncode) for client in started]

    answers = [out for (out, _), code in ended if code == 0]
    refusals = [error for (_, error), code in ended if code]
    assert len(answers) + len(refusals) == CLIENTS
    assert all(json.loads(answer)["category"] for answer in answers)
    assert all(error.strip() and "Traceback" not in error for error in refusals), refusals
    assert len(answers) >= CLIENTS / 2, refusals[:3]
    tries = sum(task["try_number"] for task in fleet.api.task_instances("on_demand_inference"))
    assert scripted.answered().total() <= tries  # a task that is tried again on a busy machine asks again
    assert fleet.api.health()["scheduler"] == "healthy"
    assert fleet.api.finish("on_demand_inference", {"message": "Are you still there?"})


def ask(fleet: Fleet, number: int) -> Any:
    command = [sys.executable, "examples/ask.py", f"Question {number}: where is my van?", "--timeout", "600"]
    environment = {"AIRFLOW_URL": fleet.api.url, "PATH": ""}
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
