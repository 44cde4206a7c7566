"""The operator that runs one paid job at a provider per task instance."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import BaseOperator, BaseOperatorLink
from pydantic import ValidationError

from include.jobs.job import Job, JobApi, Outcome
from include.jobs.record import JobKey, mark_killed, read_record
from include.jobs.service import OpenAIService, openai_service
from include.jobs.start import one_job
from include.jobs.trigger import PaidJobTrigger
from include.jobs.wait import cancel, wait_for_job

try:
    from include.traces import jobs as job_spans
except ImportError:  # a copied pattern may lack it
    job_spans = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

# After the trigger's own deadline, Airflow ends the wait, in case no triggerer runs.
GRACE_S = 300.0
KILL_TIMEOUT_S = 30.0


class JobLink(BaseOperatorLink):
    """A button in the UI that opens the job at the provider."""

    @property
    def name(self) -> str:
        return "Job at the provider"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the URL in the task's XCom `job_url`."""
        from airflow.sdk.bases.xcom import BaseXCom

        return str(BaseXCom.get_value(ti_key=ti_key, key="job_url") or "")


class PaidJobOperator(BaseOperator):
    """Start a job that costs money, wait for it, and return its result: one job per task instance.

    The job carries a key of the task instance. A retry, a cleared task, or a task whose worker or triggerer was killed
    takes up the existing job. Clearing a task whose job succeeded gives the same result and costs nothing;
    clearing one whose job failed or was cancelled starts a new job, and so does a change of the request.
    No job is started if the connection's budgets have nothing left for it.

    The wait is measured from the job's creation, or, if that time is over when the task takes the job up, from then.
    `execution_timeout` is for the task's own work; with `deferrable=False` it is ignored, as it would cut the wait.

    :param conn_id: connection to the service, see `include.jobs.service`.
    :param wait_for_completion: if False, return the job's id as soon as the job exists.
    :param deferrable: wait in the triggerer, without a worker slot.
    :param poke_interval: shortest pause between two looks, in seconds; it grows to a minute with the job's age.
    :param timeout: seconds to wait for the job's end.
    :param cancel_on_kill: cancel the job when a person ends the task, or when the worker that waits itself
        (`deferrable=False`) is told to stop.
    :param cancel_on_timeout: cancel the job when the time is over. Otherwise it goes on, and clearing the task
        waits for it again.
    """

    operator_extra_links = (JobLink(),)
    ui_color = "#e3f2e1"
    trigger_type: ClassVar[type[PaidJobTrigger]]
    # Where a person finds jobs of this kind: below OpenAI's platform, or below the URL of another service.
    openai_page: ClassVar[str]
    service_path: ClassVar[str]
    # Counts the jobs, within the connection's budgets and into the ledger: an `include.jobs.spending.JobSpending`.
    spending: ClassVar[Any] = None

    def __init__(
        self,
        *,
        conn_id: str = "openai_default",
        wait_for_completion: bool = True,
        deferrable: bool = True,
        poke_interval: float = 5.0,
        timeout: float = 24 * 3600.0,
        cancel_on_kill: bool = True,
        cancel_on_timeout: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("poke_interval", poke_interval), ("timeout", timeout)):
            if value <= 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {value}")
        if not deferrable:
            self.execution_timeout = None  # `timeout` ends the wait; this one would cancel the job
        self.conn_id = conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poke_interval = poke_interval
        self.timeout = timeout
        self.cancel_on_kill = cancel_on_kill
        self.cancel_on_timeout = cancel_on_timeout
        self._key: JobKey | None = None
        self._job_id: str | None = None

    def key(self, ti: Any) -> JobKey:
        """Return the job's key: the task instance."""
        return JobKey(ti)

    @abstractmethod
    def request(self) -> dict[str, Any]:
        """Return what the job is to do, as `JobApi.create` takes it: equal for every try of the task instance."""

    def api(self, connect: Any) -> JobApi:
        """Return the calls for this kind of job."""
        return self.trigger_type.api_type(connect)

    @abstractmethod
    def result(self, context: Context, job: Job) -> Any:
        """Return the task's output for a job that succeeded."""

    def execute(self, context: Context) -> Any:
        request = self.request()
        key = self._key = self.key(context["ti"])
        self._job_id = None
        service = openai_service(self.conn_id)
        allow = partial(self.spending.allow, self, context["ti"]) if self.spending else None

        async def start(api: JobApi) -> tuple[Job, float]:
            return await one_job(api, key, request, allow), api.now()

        job, now = asyncio.run(self._with_api(start))
        self._job_id = job.id
        if self.spending:
            self.spending.count_started(self, job)
        openai, other = f"https://platform.openai.com/{self.openai_page}", f"{service.public_url}/{self.service_path}"
        ti, url = context["ti"], f"{openai if service.is_openai else other}/{job.id}"
        ti.xcom_push(key="job_id", value=job.id)
        ti.xcom_push(key="job_url", value=url)
        ti.xcom_push(key=JobLink().xcom_key, value=url)  # Airflow itself would do it only when the task has ended
        if not self.wait_for_completion:
            return job.id
        if job.has_ended:
            return self._finish(context, Outcome(status="ended", job_id=job.id, job=job))
        deadline = job.created_at + self.timeout
        deadline = deadline if deadline > now else now + self.timeout
        if self.deferrable:
            trigger = self.trigger_type(
                conn_id=self.conn_id,
                job_id=job.id,
                poke_interval=self.poke_interval,
                deadline=deadline,
                cancel_on_kill=self.cancel_on_kill,
                cancel_on_timeout=self.cancel_on_timeout,
            )
            time_left = timedelta(seconds=deadline - now + GRACE_S)
            self.defer(trigger=trigger, method_name="execute_complete", timeout=time_left)
        return self._wait(context, job.id, deadline)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after the trigger's event.

        :raises AirflowException: the event is not from this trigger; a retry takes the job up again.
        """
        try:
            outcome = Outcome.model_validate(event)
        except ValidationError:
            raise AirflowException("The trigger's event is not an Outcome: it comes from something else.") from None
        return self._finish(context, outcome)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the wait, even if Airflow has ended it. Source: `BaseOperator.resume_execution`."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException as error:
            if type(error).__name__ != "TaskDeferralTimeout":
                raise
            # No triggerer was running at the deadline.
            record = read_record(self.key(context["ti"]).value)
            if not record or not record.job_id:
                raise
            return self._wait(context, record.job_id, 0.0)

    def _wait(self, context: Context, job_id: str, deadline: float) -> Any:
        """Wait in this process."""
        wait: Any = {"poke_interval": self.poke_interval, "cancel_on_timeout": self.cancel_on_timeout}
        work = self._with_api(lambda api: wait_for_job(api, job_id, deadline=deadline, **wait))
        return self._finish(context, asyncio.run(work))

    def on_kill(self) -> None:
        """Cancel the job when this process is told to stop, even before the answer to its creation has come."""
        key = self._key
        if not self.cancel_on_kill or key is None:
            return
        with ThreadPoolExecutor(1) as pool:  # this may run in a signal handler, within a running event loop
            pool.submit(asyncio.run, self._with_api(lambda api: self._cancel(api, key))).result(KILL_TIMEOUT_S)
        mark_killed(key.value)

    async def _cancel(self, api: JobApi, key: JobKey) -> None:
        found = await api.find(key.value, 0) if self._job_id is None else [await api.get(self._job_id)]
        for job in found:
            if not job.has_ended:
                await cancel(api, job.id)

    async def _with_api(self, work: Any) -> Any:
        async def connect() -> OpenAIService:
            return openai_service(self.conn_id)

        api = self.api(connect)
        try:
            return await work(api)
        finally:
            await api.close()

    def _finish(self, context: Context, outcome: Outcome) -> Any:
        job = outcome.job
        where = f"Connection {self.conn_id!r}"
        if job_spans and job and job.has_ended:
            key = self.key(context["ti"]).value
            job_spans.send_job_span(self.service_path, self.conn_id, key, job.id, job.status, job.created_at)
        if outcome.status == "unreachable":
            raise AirflowException(f"{where}: {outcome.message}. A retry takes the job up again.")
        if outcome.status == "timed_out" or job is None:
            raise AirflowFailException(f"{where}: {outcome.message}.")
        if self.spending and job.has_no_result:
            self.spending.count_ended(self, context["ti"], job)
        if job.status == "failed":
            reason = job.detail.get("error") or "the provider gives no reason"
            raise AirflowFailException(f"{where}: job {job.id} failed: {reason}. Clear this task to start a new one.")
        if job.status == "cancelled":
            raise AirflowFailException(f"{where}: job {job.id} was cancelled. Clear this task to start a new one.")
        return self.result(context, job)
