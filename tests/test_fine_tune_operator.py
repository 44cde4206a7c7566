"""The fine-tuning operator and its trigger, against the emulator over real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred

from include.fine_tuning import api as fine_tuning_api
from include.fine_tuning.api import FineTuningApi, OpenAIFineTuneTrigger
from include.fine_tuning.operator import OpenAIFineTuneOperator, valid_suffix
from include.jobs import start, trigger
from include.jobs.job import Job, Outcome
from include.jobs.record import JobKey, record_path
from include.jobs.service import OpenAIService, openai_service
from include.jobs.start import one_job
from tests.conftest import KEY
from tests.emulator import JOBS, Emulator
from tests.killing import Killed, killing
from tests.stack import wait_until
from tests.storages import on_storage
from tests.virtual_time import VirtualTime

JOB_SECONDS = 0.4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    from local.openai_emulator import serve

    folder = tmp_path_factory.mktemp("emulator")
    with serve(folder, job_seconds=JOB_SECONDS, token=KEY) as url:
        yield Emulator(url, KEY)


@pytest.fixture
def provider(server: Emulator, storage: Path, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", server.connection())
    monkeypatch.setattr(start, "SETTLE_S", 0.3)
    return server


@pytest.fixture(scope="module")
def file_id(server: Emulator) -> str:
    return server.upload()


class Task:
    """A task instance outside Airflow: its operator, its XComs, and one try after the other."""

    def __init__(self, file_id: str, run_id: str, **arguments: Any) -> None:
        self.arguments = {"fine_tuning_file_id": file_id, "poke_interval": 0.05, "timeout": 300.0} | arguments
        self.xcoms: dict[str, Any] = {}
        self.ti = SimpleNamespace(
            dag_id="tuning",
            run_id=run_id,
            task_id="fine_tune",
            map_index=-1,
            max_tries=2,
            xcom_push=lambda key, value: self.xcoms.update({key: value}),
        )

    def operator(self) -> OpenAIFineTuneOperator:
        return OpenAIFineTuneOperator(task_id="fine_tune", **self.arguments)

    def attempt(self) -> Any:
        """One try, from its start to its end, with the wait where the operator wants it."""
        try:
            return self.operator().execute({"ti": self.ti})
        except TaskDeferred as deferred:
            path, arguments = deferred.trigger.serialize()
            assert path == "include.fine_tuning.api.OpenAIFineTuneTrigger"
            event = asyncio.run(only_event(OpenAIFineTuneTrigger(**json.loads(json.dumps(arguments)))))
            return self.operator().execute_complete({"ti": self.ti}, event)

    def clear(self) -> None:
        self.ti.max_tries += 1


async def only_event(trigger: OpenAIFineTuneTrigger) -> dict[str, Any]:
    (event,) = [event async for event in trigger.run()]
    return json.loads(json.dumps(event.payload))


@pytest.fixture
def task(provider: Emulator, file_id: str, request: pytest.FixtureRequest) -> Callable[..., Task]:
    return lambda **arguments: Task(file_id, f"{request.node.name} {time.time()}", **arguments)


def jobs_of(provider: Emulator, task: Task) -> list[dict[str, Any]]:
    return [job for job in provider.jobs() if (job["metadata"] or {}).get("airflow_run_id") == task.ti.run_id[:500]]


@pytest.mark.parametrize("deferrable", [True, False])
def test_the_output_is_the_model_and_the_rest_is_in_keys_of_its_own(task, provider, deferrable):
    tuning = task(deferrable=deferrable, suffix="Run of 2026/11/23!", seed=5)
    model = tuning.attempt()
    (job,) = jobs_of(provider, tuning)
    assert model == job["fine_tuned_model"]
    assert ":Run-of-2026-11-23:" in model
    assert job["seed"] == 5
    assert tuning.xcoms["job_id"] == job["id"]
    assert tuning.xcoms["job_url"] == tuning.xcoms["_link_JobLink"] == f"{provider.url}/fine_tuning/jobs/{job['id']}"
    assert tuning.xcoms["trained_tokens"] == job["trained_tokens"] > 0
    assert tuning.xcoms["cost_usd"] == pytest.approx(job["trained_tokens"] * 3 / 1e6, abs=1e-6)
    assert tuning.xcoms["result_files"] == job["result_files"]
    assert tuning.xcoms["seconds"] >= 0


def test_without_waiting_the_output_is_the_job(task, provider):
    tuning = task(wait_for_completion=False)
    assert tuning.attempt() == jobs_of(provider, tuning)[0]["id"]


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (
            {"status": "failed", "error": {"code": "bad", "message": "line 7 is\nodd", "param": "training_file"}},
            r"failed: line 7 is odd \(code bad, training_file\)",
        ),
        ({"status": "cancelled"}, "was cancelled"),
    ],
)
def test_a_job_without_a_result_fails_the_task_for_good_and_says_why(task, provider, deferrable, outcome, message):
    provider.next_job(**outcome)
    tuning = task(deferrable=deferrable)
    with pytest.raises(AirflowFailException, match=message):
        tuning.attempt()
    # A retry, as after a worker that was killed before it could tell, pays for nothing new.
    with pytest.raises(AirflowFailException, match=message):
        tuning.attempt()
    assert len(jobs_of(provider, tuning)) == 1
    tuning.clear()
    assert tuning.attempt().startswith("ft:")
    assert len(jobs_of(provider, tuning)) == 2


@pytest.mark.parametrize(
    ("status", "warning"), [("paused", "is paused at the provider"), ("reticulating", "unknown status 'reticulating'")]
)
def test_a_paused_or_unknown_status_is_warned_of_and_waited_out(task, provider, status, warning, caplog):
    provider.next_job(hold=status)
    tuning = task()
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(tuning.attempt()))
    thread.start()
    wait_until(lambda: warning in caplog.text)
    provider.set_job(tuning.xcoms["job_id"], "succeeded")
    thread.join(15)
    assert result[0].startswith("ft:")


def test_the_providers_events_are_in_the_log(task, provider, caplog):
    caplog.set_level("INFO")
    tuning = task()
    tuning.attempt()
    events = [line for line in caplog.messages if line.startswith(f"{tuning.xcoms['job_id']}: ")]
    assert len(events) == len(set(events)) == 6, "an event was lost or logged twice"
    assert caplog.text.index("Validating training file") < caplog.text.index("New fine-tuned model created")


def test_the_events_of_a_job_that_goes_on_are_asked_for_now_and_then_and_at_its_end(task, provider):
    provider.next_job(hold="running")
    job_id = task(wait_for_completion=False).attempt()
    events = f"{JOBS}/{job_id}/events"
    thread = threading.Thread(target=wait, args=(provider, job_id))
    thread.start()
    wait_until(lambda: len(provider.requests("GET", f"{JOBS}/{job_id}")) >= 5)
    assert len(provider.requests("GET", events)) == 1
    provider.set_job(job_id, "succeeded")
    thread.join(60)
    assert len(provider.requests("GET", events)) == 2


@pytest.mark.parametrize(("age_s", "pause_s"), [(0, 60), (240, 120), (24 * 3600, 300)])
def test_the_events_of_an_older_job_are_asked_for_less_often(monkeypatch, age_s, pause_s):
    virtual, asked = VirtualTime(monkeypatch, fine_tuning_api), []

    class Api(FineTuningApi):
        def now(self) -> float:
            return 1e9 + age_s

        async def client(self) -> Any:
            asked.append(virtual.now)
            raise ConnectionError

    async def watched() -> None:
        api, known = Api(None), {}  # type: ignore[arg-type]
        job = Job(id="job", status="running", created_at=1e9)
        for _ in range(400):
            with suppress(ConnectionError):
                await api.relay_news(job, known)
            virtual.now += 1

    asyncio.run(watched())
    assert asked[1] - asked[0] == pytest.approx(pause_s, abs=1)


@on_storage("disk", "s3")
def test_clearing_a_task_whose_job_succeeded_returns_the_same_model_at_no_cost(task, provider):
    tuning = task()
    first = tuning.attempt()
    tuning.clear()
    assert tuning.attempt() == first
    assert len(jobs_of(provider, tuning)) == 1


def test_a_changed_request_starts_another_job_and_cancels_the_one_under_way(task, provider):
    provider.next_job(hold="running")
    tuning = task(wait_for_completion=False)
    tuning.attempt()
    tuning.arguments |= {"seed": 11}
    tuning.attempt()
    assert [job["status"] == "cancelled" for job in jobs_of(provider, tuning)] == [False, True]


def test_a_job_that_the_provider_does_not_know_is_no_reason_to_pay_again(task, provider):
    tuning = task(wait_for_completion=False)
    tuning.attempt()
    path = record_path(JobKey(tuning.ti).value)
    path.write_text(path.read_text().replace(tuning.xcoms["job_id"], "ftjob-of-another-account"))
    with pytest.raises(AirflowFailException, match=r"does not know job ftjob-of-another-account.*another account"):
        tuning.attempt()
    path.write_text("{")
    with pytest.raises(AirflowFailException, match=r"is not valid\. Check at the provider"):
        tuning.attempt()
    assert len(jobs_of(provider, tuning)) == 1


def test_a_lost_record_is_made_up_for_by_the_provider(task, provider):
    tuning = task(wait_for_completion=False)
    job_id = tuning.attempt()
    record_path(JobKey(tuning.ti).value).unlink()
    assert tuning.attempt() == job_id


# One job, wherever the worker is killed


CUT_POINTS = [
    (start, "write_record", 1, "before"),
    (start, "write_record", 1, "after"),
    (FineTuningApi, "create", 1, "before"),
    (FineTuningApi, "create", 1, "after"),
    (start, "write_record", 2, "before"),
    (start, "write_record", 2, "after"),
    (FineTuningApi, "find", 1, "before"),
    (FineTuningApi, "find", 2, "after"),
    (start, "write_record", 3, "before"),
    (start, "write_record", 3, "after"),
    (FineTuningApi, "get", 1, "before"),
    (FineTuningApi, "get", 2, "after"),
    (FineTuningApi, "relay_news", 1, "after"),
    (OpenAIFineTuneOperator, "result", 1, "before"),
    (OpenAIFineTuneOperator, "result", 1, "after"),
]


@pytest.mark.parametrize(("owner", "name", "call", "when"), CUT_POINTS)
def test_a_worker_killed_at_this_point_leaves_one_job_and_the_next_try_its_model(
    task, provider, owner, name, call, when
):
    tuning = task(deferrable=False)
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, owner, name, call, when)
        with pytest.raises(Killed):
            tuning.attempt()
    model = tuning.attempt()
    (job,) = jobs_of(provider, tuning)
    assert model == job["fine_tuned_model"]


@pytest.mark.parametrize(
    ("fault", "creations"),
    [({"drop": "after"}, 1), ({"drop": "before"}, 2), ({"status": 503}, 2), ({"status": 429, "retry_after": 0}, 2)],
)
def test_a_lost_answer_to_the_creation_is_looked_up_not_repeated(task, provider, fault, creations):
    before = len(provider.requests("POST", JOBS))
    provider.fault("POST", f"{JOBS}$", **fault)
    tuning = task()
    if creations > 1:
        with pytest.raises(AirflowException, match="The next try looks for it again"):
            tuning.attempt()
        assert jobs_of(provider, tuning) == []
    assert tuning.attempt().startswith("ft:")
    assert len(jobs_of(provider, tuning)) == 1
    assert len(provider.requests("POST", JOBS)) - before == creations


def test_of_two_workers_at_once_the_older_job_stays(task, provider):
    tuning = task(wait_for_completion=False)
    request = tuning.operator().request()

    async def both() -> list[str]:
        async def connect() -> Any:
            return openai_service("openai_default")

        apis = [FineTuningApi(connect) for _ in range(2)]
        for api in apis:  # neither sees the other's job before its own is there
            find, first = api.find, [True]

            async def blind(*args: Any, find: Any = find, first: list[bool] = first) -> Any:
                if first.pop() if first else False:
                    return []
                return await find(*args)

            api.find = blind
        jobs = await asyncio.gather(*(one_job(api, JobKey(tuning.ti), request) for api in apis))
        for api in apis:
            await api.close()
        return [job.id for job in jobs]

    ids = asyncio.run(both())
    left = [job["id"] for job in jobs_of(provider, tuning) if job["status"] != "cancelled"]
    assert len(left) == 1
    assert left[0] in ids


# Waiting


def wait(provider: Emulator, job_id: str, **arguments: Any) -> Outcome:
    arguments = {
        "conn_id": "openai_default",
        "poke_interval": 0.05,
        "deadline": time.time() + 300,
        "cancel_on_kill": True,
        "cancel_on_timeout": True,
    } | arguments
    return Outcome.model_validate(asyncio.run(only_event(OpenAIFineTuneTrigger(job_id=job_id, **arguments))))


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429, "retry_after": 0.1}, {"drop": "before"}])
def test_errors_that_pass_are_waited_out(task, provider, fault):
    job_id = task(wait_for_completion=False).attempt()
    provider.fault("GET", f"{JOBS}/{job_id}", times=8, **fault)
    assert wait(provider, job_id).status == "ended"


def test_a_refused_key_ends_the_wait_after_some_tries_and_a_retry_takes_the_job_up(task, provider):
    tuning = task(wait_for_completion=False)
    job_id = tuning.attempt()
    provider.fault("GET", f"{JOBS}/{job_id}", times=5, status=401)
    outcome = wait(provider, job_id)
    assert (outcome.status, "the key was refused" in outcome.message) == ("unreachable", True)
    with pytest.raises(AirflowException, match="A retry takes the job up again") as raised:
        tuning.operator().execute_complete({"ti": tuning.ti}, outcome.model_dump())
    assert not isinstance(raised.value, AirflowFailException)
    tuning.arguments |= {"wait_for_completion": True}
    assert tuning.attempt().startswith("ft:")


async def both(*job_ids: str) -> list[str]:
    """Wait for two jobs in one event loop, as a triggerer does; return how each wait ended."""
    arguments: Any = {"poke_interval": 0.05, "deadline": time.time() + 300}
    arguments |= {"conn_id": "openai_default", "cancel_on_kill": True, "cancel_on_timeout": True}
    triggers = [OpenAIFineTuneTrigger(job_id=job_id, **arguments) for job_id in job_ids]
    return [event["status"] for event in await asyncio.gather(*map(only_event, triggers))]


def test_the_triggers_of_a_connection_share_a_client_until_the_last_has_ended(task, provider, monkeypatch):
    provider.next_job(hold="running")
    first = task(wait_for_completion=False).attempt()
    second = task(wait_for_completion=False).attempt()
    clients: list[Any] = []
    real = OpenAIService.client

    def client(self: OpenAIService, **arguments: Any) -> Any:
        clients.append(real(self, **arguments))
        return clients[-1]

    monkeypatch.setattr(OpenAIService, "client", client)

    def end_the_first_after_the_second() -> None:
        wait_until(lambda: provider.requests("GET", f"{JOBS}/{second}/events")[1:])  # the last look of an ended job
        seen = len(provider.requests("GET", f"{JOBS}/{first}"))
        wait_until(lambda: len(provider.requests("GET", f"{JOBS}/{first}")) > seen + 2)
        provider.set_job(first, "succeeded")

    thread = threading.Thread(target=end_the_first_after_the_second)
    thread.start()
    assert asyncio.run(both(first, second)) == ["ended", "ended"]
    thread.join(60)
    assert [each.is_closed() for each in clients] == [True]


def test_a_key_that_was_changed_is_taken_up_by_all_that_wait(task, provider, monkeypatch):
    jobs = [task(wait_for_completion=False).attempt() for _ in range(2)]
    keys = iter(["an old key"])

    def service(conn_id: str) -> OpenAIService:
        found = openai_service(conn_id)
        return replace(found, key=next(keys, found.key))

    monkeypatch.setattr(trigger, "openai_service", service)
    assert asyncio.run(both(*jobs)) == ["ended", "ended"]


@pytest.mark.parametrize(
    ("cancels", "status", "text"), [(True, "cancelled", "was cancelled"), (False, "running", "goes on")]
)
def test_the_time_is_over_at_the_deadline_also_for_a_trigger_that_starts_after_it(
    task, provider, cancels, status, text
):
    provider.next_job(hold="running")
    tuning = task(wait_for_completion=False)
    job_id = tuning.attempt()
    outcome = wait(provider, job_id, deadline=time.time() - 1, cancel_on_timeout=cancels)
    assert outcome.status == "timed_out"
    assert jobs_of(provider, tuning)[0]["status"] == status
    with pytest.raises(AirflowFailException, match=text):
        tuning.operator().execute_complete({"ti": tuning.ti}, outcome.model_dump())


def test_a_job_that_ends_while_it_is_cancelled_counts(task, provider, monkeypatch):
    provider.next_job(hold="running")
    job_id = task(wait_for_completion=False).attempt()
    real = FineTuningApi.cancel

    async def too_late(self: Any, job_id: str) -> None:
        await asyncio.to_thread(provider.set_job, job_id, "succeeded")
        await real(self, job_id)

    monkeypatch.setattr(FineTuningApi, "cancel", too_late)
    outcome = wait(provider, job_id, deadline=time.time() - 1)
    assert (outcome.status, outcome.job.status) == ("ended", "succeeded")


def test_the_deadline_counts_from_the_jobs_creation_and_moves_with_the_trigger(task, provider):
    provider.next_job(hold="running")
    tuning = task(timeout=100.0)
    with pytest.raises(TaskDeferred) as deferred:
        tuning.operator().execute({"ti": tuning.ti})
    _, arguments = deferred.value.trigger.serialize()
    (job,) = jobs_of(provider, tuning)
    assert arguments["deadline"] == job["created_at"] + 100
    assert OpenAIFineTuneTrigger(**arguments).serialize()[1] == arguments
    assert deferred.value.timeout.total_seconds() == pytest.approx(400, abs=10)
    provider.set_job(job["id"], "cancelled")


def test_when_airflow_itself_ends_the_wait_the_job_is_cancelled(task, provider):
    provider.next_job(hold="running")
    tuning = task(wait_for_completion=False)
    tuning.attempt()
    with pytest.raises(AirflowFailException, match=r"has not ended in time\. It was cancelled"):
        tuning.operator().resume_execution("__fail__", {"error": "Trigger timeout"}, {"ti": tuning.ti})
    assert jobs_of(provider, tuning)[0]["status"] == "cancelled"


def test_a_trigger_that_broke_leaves_the_job_for_the_retry(task, provider):
    provider.next_job(hold="running")
    tuning = task(wait_for_completion=False)
    job_id = tuning.attempt()
    with pytest.raises(AirflowException) as raised:
        tuning.operator().resume_execution("__fail__", {"error": "Trigger failure"}, {"ti": tuning.ti})
    assert not isinstance(raised.value, AirflowFailException)
    assert jobs_of(provider, tuning)[0]["status"] == "running"
    provider.set_job(job_id, "cancelled")


def test_an_event_from_elsewhere_is_refused(task, provider):
    with pytest.raises(AirflowException, match="not an Outcome"):
        task().operator().execute_complete({}, {"status": "success", "model": "evil"})


# Being killed


def test_a_worker_told_to_stop_cancels_the_job_and_the_next_try_starts_anew(task, provider):
    provider.next_job(hold="running")
    tuning = task(deferrable=False)
    operator, failures = tuning.operator(), []

    def run() -> None:
        try:
            operator.execute({"ti": tuning.ti})
        except AirflowFailException as error:
            failures.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: "job_id" in tuning.xcoms)
    operator.on_kill()
    thread.join(10)
    assert "was cancelled" in failures[0]
    assert tuning.attempt().startswith("ft:")
    assert len(jobs_of(provider, tuning)) == 2


@pytest.mark.parametrize(
    ("state", "status"), [("failed", "cancelled"), ("success", "cancelled"), ("deferred", "running"), (None, "running")]
)
def test_only_a_task_that_a_person_has_ended_cancels_from_the_triggerer(task, provider, monkeypatch, state, status):
    provider.next_job(hold="running")
    tuning = task()
    with pytest.raises(TaskDeferred) as deferred:
        tuning.operator().execute({"ti": tuning.ti})
    trigger = deferred.value.trigger

    async def task_state() -> str | None:
        return state

    monkeypatch.setattr(trigger, "_task_state", task_state)

    async def stopped() -> None:
        waiting = asyncio.ensure_future(only_event(trigger))
        (job,) = jobs_of(provider, tuning)
        await asyncio.to_thread(wait_until, lambda: provider.requests("GET", f"{JOBS}/{job['id']}"))
        for _ in range(5):  # as Airflow 3.1 does, until the trigger has ended
            waiting.cancel()
            await asyncio.sleep(0.005)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if hasattr(type(trigger).__mro__[2], "on_kill"):  # Airflow 3.3 calls it itself
            await trigger.on_kill()

    asyncio.run(stopped())
    (job,) = jobs_of(provider, tuning)
    assert job["status"] == status
    if status == "running":
        provider.set_job(job["id"], "cancelled")


def test_a_job_that_could_not_be_cancelled_is_named_also_if_nobody_answers(task, provider, monkeypatch, logged):
    provider.next_job(hold="running")
    tuning = task()
    with pytest.raises(TaskDeferred) as deferred:
        tuning.operator().execute({"ti": tuning.ti})
    trigger = deferred.value.trigger
    monkeypatch.setattr(trigger, "_task_state", asyncio.Event().wait)
    monkeypatch.setattr("include.jobs.trigger.LONGEST_CANCEL_S", 0.01)

    asyncio.run(trigger.on_kill())

    (job,) = jobs_of(provider, tuning)
    assert f"Job {job['id']} could not be cancelled (no answer in 0 s): do it at the provider." in logged()
    provider.set_job(job["id"], "cancelled")


# What must not be seen


def test_the_key_is_nowhere(task, provider, logged, storage):
    tuning = task()
    with pytest.raises(TaskDeferred) as deferred:
        tuning.operator().execute({"ti": tuning.ti})
    trigger = deferred.value.trigger
    event = asyncio.run(only_event(trigger))
    operator = tuning.operator()
    operator.execute_complete({"ti": tuning.ti}, event)
    stored = "".join(path.read_text() for path in storage.rglob("*.json"))
    shown = [trigger.serialize(), repr(trigger), event, tuning.xcoms, vars(operator), openai_service("openai_default")]
    assert "ftjob-" in stored
    assert KEY not in "".join([*map(str, shown), stored, logged()])


def test_a_refused_creation_says_what_is_wrong_and_is_not_retried(task, provider):
    with pytest.raises(AirflowFailException, match=r"starting the job failed: status 40\d.*model"):
        task(model="gpt-2").attempt()
    with pytest.raises(AirflowFailException, match="fine_tuning_file_id is not the id of a file: None"):
        task(fine_tuning_file_id=None).attempt()


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("manual__2026-11-23T10:00:00+00:00", "manual-2026-11-23T10-00-00-00-00"),
        ("--", ""),
        ("ü" * 3 + "x", "x"),
        ("a" * 90, "a" * 64),
        ("{{ conn.x.password }}", "conn-x-password"),
    ],
)
def test_a_suffix_is_made_valid(given, made):
    assert valid_suffix(given) == made


@pytest.mark.parametrize(
    "wrong", [{"poke_interval": 0}, {"timeout": -1}, {"method": {"a": 1}, "hyperparameters": {"b": 1}}]
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(wrong):
    with pytest.raises(ValueError, match=r"seconds|not both"):
        OpenAIFineTuneOperator(task_id="fine_tune", fine_tuning_file_id="file-1", **wrong)
