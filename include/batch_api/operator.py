"""Many requests in one batch at half the price: the operator for services with OpenAI's Batch API."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from include.batch_api.api import ENDPOINT, BatchApi, OpenAIBatchTrigger
from include.batch_api.requests import Answers, check_requests, write_upload
from include.batch_api.rounds import Rounds
from include.common.stored_files import input_file, stored_file
from include.jobs.files import upload_once
from include.jobs.job import Job, Outcome
from include.jobs.operator import PaidJobOperator
from include.jobs.record import JobKey, read_record
from include.jobs.service import openai_service, task_error

try:
    from include.batch_api.spending import batch_spending
except ImportError:  # a copied pattern may lack it: then there are neither budgets nor a ledger
    batch_spending = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

# No batch goes on for longer, including the time that the provider takes to cancel one.
BATCH_LIFE_S = 25 * 3600.0


class OpenAIBatchOperator(PaidJobOperator):
    """Have a file of requests answered by a batch. The output is the URL of the results.

    Answers are stored before they count, also those of a batch that expired or was cancelled, and are never requested
    again. Requests that ended in a temporary error (429, 5xx, expired, no result at all) go into another batch, up to
    `rounds` batches; clearing the task allows as many again. A request that the provider refuses (400) keeps its error.
    So a task that succeeds may have errors in its results; their reader decides.

    Further XComs: `counts` (`{"answered": ..., "failed": ...}`), `batches` (the ids of all batches), and `job_id` and
    `job_url` of the last one. For what holds for each batch (one per round, the waits, kills and time-outs), see
    `PaidJobOperator`.

    :param input_url: JSON lines on the project's storage (templated), a request in each: `{"custom_id": "...",
        "body": {...}}`, with the body of a chat completion request. All must be for the same model.
    :param output_url: where on the project's storage the results go (templated): a line per request, in their order,
        see `include.batch_api.requests.Answers.write`.
    :param rounds: the most batches. Requests that have a temporary error after the last one keep it.
    :param timeout: seconds for each batch; the provider ends one after 24 hours.
    :raises AirflowFailException: the input is not valid, which is found before anything is uploaded; the batch failed,
        was cancelled or took too long, or the provider refuses it.
    :raises AirflowException: the provider could not be reached; a retry takes the batch up again.
    """

    template_fields = ("input_url", "output_url")
    trigger_type = OpenAIBatchTrigger
    openai_page = service_path = "batches"
    spending = batch_spending

    def __init__(
        self, *, input_url: str, output_url: str, rounds: int = 3, timeout: float = BATCH_LIFE_S, **kwargs: Any
    ) -> None:
        super().__init__(timeout=timeout, **kwargs)
        if rounds < 1:
            raise ValueError(f"rounds must be 1 or more, not {rounds}")
        self.input_url = input_url
        self.output_url = output_url
        self.rounds = rounds
        self._request: dict[str, Any] = {}
        self._input_file_id = ""

    def key(self, ti: Any) -> JobKey:
        """Return the key of the task instance's open round."""
        return JobKey(ti, f"round {_rounds(ti).number}")

    def execute(self, context: Context) -> Any:
        ti = context["ti"]
        path, output = input_file(self.input_url), stored_file(self.output_url)
        requests = check_requests(path)
        self._leave_what_was_given_up(ti)
        rounds = _rounds(ti)
        with closing(Answers(requests)) as answers:
            for file in rounds.files():
                answers.add(file)
            missing = answers.missing()
            if not missing or rounds.ended_since_clear() >= self.rounds:
                counts = answers.write(output)
                self.log.info("%d requests answered, %d failed: %s", counts["answered"], counts["failed"], output)
                ti.xcom_push(key="counts", value=dict(counts))
                ti.xcom_push(key="batches", value=rounds.batches)
                return str(output)
        self.log.info("Round %d: %d of %d requests are to be sent.", rounds.number, len(missing), len(requests))
        upload = rounds.folder / "requests.jsonl"
        self._request = {"endpoint": ENDPOINT, "sha256": write_upload(upload, path, missing)}
        self._input_file_id = asyncio.run(upload_once(openai_service(self.conn_id), upload, "batch"))
        return super().execute(context)

    def request(self) -> dict[str, Any]:
        return self._request

    def api(self, connect: Any) -> BatchApi:
        return BatchApi(connect, self._input_file_id)

    def result(self, context: Context, job: Job) -> Any:
        """Close the round, and go on with the next or with the results."""
        rounds = _rounds(context["ti"])
        rounds.close(self._collect(context["ti"], rounds, job.id))
        return self.execute(context)

    def _finish(self, context: Context, outcome: Outcome) -> Any:
        job = outcome.job
        if job and job.status == "cancelled":
            rounds = _rounds(context["ti"])
            jobs = self._collect(context["ti"], rounds, job.id)
            if rounds.is_given_up:
                rounds.close(jobs)
                return self.execute(context)
        return super()._finish(context, outcome)

    def _leave_what_was_given_up(self, ti: Any) -> None:
        """Close the round if its batch was cancelled or failed, and another may follow now."""
        rounds, key = _rounds(ti), self.key(ti)
        record = read_record(key.value)
        if record is None or not (record.killed or key.max_tries > record.max_tries):
            return
        jobs = self._collect(ti, rounds, record.job_id)
        if jobs and all(job.has_no_result for job in jobs):
            rounds.close(jobs)
        elif jobs and not any(job.is_going or job.status == "succeeded" for job in jobs):
            rounds.give_up()

    def _collect(self, ti: Any, rounds: Rounds, job_id: str | None) -> list[Job]:
        """Store the files of this round's batches that have ended; return all batches of the round."""
        key = self.key(ti)
        record = read_record(key.value)
        since = (record.intent_at if record else time.time()) - BATCH_LIFE_S

        async def collect(api: BatchApi) -> list[Job]:
            found = {job.id: job for job in await api.find(key.value, since)}
            if job_id and job_id not in found:
                found[job_id] = await api.get(job_id)
            for job in found.values():
                if job.has_ended:
                    await rounds.keep(api, job)
            return list(found.values())

        try:
            jobs = cast(list[Job], asyncio.run(self._with_api(collect)))
        except Exception as error:
            raise task_error(openai_service(self.conn_id), "collecting the results", error) from None
        for job in jobs:
            if self.spending and job.has_ended:
                self.spending.count_ended(self, ti, job)
        return jobs


def _rounds(ti: Any) -> Rounds:
    return Rounds(JobKey(ti).value, ti.max_tries)
