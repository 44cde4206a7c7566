"""The trigger that waits for a paid job, in the triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from include.common.triggerer import ask_airflow
from include.jobs.job import JobApi
from include.jobs.service import OpenAIService, openai_service
from include.jobs.wait import cancel, wait_for_job

# States in which a task instance no longer needs its job. A cleared task is in none of them: it takes the job up again.
GIVEN_UP = frozenset({"failed", "success", "skipped", "upstream_failed", "removed"})
HAS_ON_KILL = hasattr(BaseTrigger, "on_kill")
LONGEST_CANCEL_S = 120.0  # a busy API server takes a while to report the task's state

# By kind of job, connection and event loop: the API that this process's triggers share, and these triggers. With a
# client per trigger, each look at a job would need a new connection.
_shared: dict[tuple[Any, ...], tuple[JobApi, set[PaidJobTrigger]]] = {}


class PaidJobTrigger(BaseTrigger):
    """Wait for a job and send one event, an `include.jobs.job.Outcome`.

    The trigger's row in the database names the connection; the key is read where and when it is needed. A triggerer
    that stops or hands over to another cancels no job. With `cancel_on_kill`, a person who ends the deferred task does:
    on Airflow 3.3 through `on_kill`; on 3.1, which has no `on_kill`, the trigger checks the task's state when it is
    cancelled. On 3.1, the job of a task that is ended while no triggerer runs goes on.

    A subclass sets `api_type`: the calls for its kind of job.

    :param job_id: the provider's id.
    :param poke_interval: shortest pause between two looks, in seconds.
    :param deadline: seconds since the epoch by the provider's clock, which is the same for every process.
    """

    api_type: ClassVar[type[JobApi]]

    def __init__(
        self,
        *,
        conn_id: str,
        job_id: str,
        poke_interval: float,
        deadline: float,
        cancel_on_kill: bool,
        cancel_on_timeout: bool,
    ) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.job_id = job_id
        self.poke_interval = poke_interval
        self.deadline = deadline
        self.cancel_on_kill = cancel_on_kill
        self.cancel_on_timeout = cancel_on_timeout

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments of this trigger."""
        names = ("conn_id", "job_id", "poke_interval", "deadline", "cancel_on_kill", "cancel_on_timeout")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def _connect(self) -> OpenAIService:
        return await ask_airflow(openai_service, self.conn_id)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and send the one event."""
        try:
            async with self._shared_api() as api:
                outcome = await wait_for_job(
                    api,
                    self.job_id,
                    poke_interval=self.poke_interval,
                    deadline=self.deadline,
                    cancel_on_timeout=self.cancel_on_timeout,
                )
        except asyncio.CancelledError:
            if not HAS_ON_KILL:
                await _to_the_end(self._cancel_if_given_up())
            raise
        yield TriggerEvent(outcome.model_dump(mode="json"))

    @asynccontextmanager
    async def _shared_api(self) -> AsyncIterator[JobApi]:
        key = (self.api_type, self.conn_id, asyncio.get_running_loop())
        api, users = _shared.setdefault(key, (self.api_type(self._connect), set()))
        users.add(self)
        try:
            yield api
        finally:
            users.remove(self)
            if not users:
                del _shared[key]
                await api.close()

    async def on_kill(self) -> None:
        """Cancel the job if a person has ended the deferred task. Source: `BaseTrigger.on_kill` of Airflow 3.3."""
        await _to_the_end(self._cancel_if_given_up())

    async def _cancel_if_given_up(self) -> None:
        if not self.cancel_on_kill:
            return
        try:
            async with asyncio.timeout(LONGEST_CANCEL_S):
                state = await self._task_state()
                if state not in GIVEN_UP:
                    return
                self.log.info("The task is %s: cancelling job %s.", state, self.job_id)
                api = self.api_type(self._connect)
                try:
                    await cancel(api, self.job_id)
                finally:
                    await api.close()
        except Exception as error:
            reason = str(error) or f"no answer in {LONGEST_CANCEL_S:.0f} s"
            self.log.error("Job %s could not be cancelled (%s): do it at the provider.", self.job_id, reason)

    async def _task_state(self) -> str | None:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        ti: Any = self.task_instance
        states = await ask_airflow(
            RuntimeTaskInstance.get_task_states,
            dag_id=ti.dag_id,
            task_ids=[ti.task_id],
            run_ids=[ti.run_id],
            map_index=ti.map_index,
        )
        name = ti.task_id if ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}"
        state: str | None = states.get(ti.run_id, {}).get(name)
        return state


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Finish the work even if cancelled: Airflow cancels a trigger again every second until it has ended."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
