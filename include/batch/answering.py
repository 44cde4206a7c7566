"""Answer the rows of a batch with a model: many at once, each paid once, within a budget."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from include.ai import LLM_CONN_ID, untrusted
from include.ai.limited_model import LimitedModel
from include.ai.model import RequestRefused, TextTooLong
from include.ai.output import output_to_json
from include.ai.usage import LLMUsage, UsageRecorder, sum_usage
from include.batch.chunks import Chunk, Result
from include.batch.progress import Progress
from include.batch.rows import Row

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_ai import Agent

# Pauses before a row without an answer is asked again; the model has repeated its call each time.
PAUSES_S = (2.0, 10.0, 30.0)
# After so many rows in a row without an answer the provider is down, and the task waits for its next try.
MOST_UNANSWERED = 10
PROGRESS_S = 10.0

log = logging.getLogger(__name__)

_calls_of_row: ContextVar[list[LLMUsage]] = ContextVar("calls_of_row")


class RowUsage(UsageRecorder):
    """Keeps the calls of each row apart, where thousands are in one task: an XCom for each would be slow."""

    def record(self, call: LLMUsage) -> None:
        """Count one answered call for the row that is being asked."""
        _calls_of_row.get().append(call)


class BudgetReached(AirflowFailException):
    """What the rows may cost is spent. What was answered is kept."""


class Answering:
    """One task's work: the rows of its chunks.

    :param chunks: in the order of the input.
    :param rows: how many rows these chunks have in all.
    :param system_prompt: tells the model what to do with each row's text.
    :param output_type: the form of an answer.
    :param at_once: rows in flight.
    :param budget_usd: what these rows may cost in all, over all tries and runs; None for no limit.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        rows: int,
        *,
        system_prompt: str,
        output_type: type[BaseModel],
        at_once: int,
        budget_usd: float | None,
    ) -> None:
        from pydantic_ai import Agent

        self.progress = Progress(rows)
        self._chunks = chunks
        model = LimitedModel(LLM_CONN_ID, RowUsage(), at_once)
        self._agent: Agent[None, Any] = Agent(model, system_prompt=system_prompt, output_type=output_type)
        self._at_once = at_once
        self._budget_usd = budget_usd
        self._in_flight = 0
        self._unanswered_in_a_row = 0
        self._stop: Exception | None = None

    async def run(self) -> None:
        """Answer every row that has no result yet.

        Whatever ends this early lets the calls in flight come back, so that they are not paid again.

        :raises BudgetReached: the rest would cost more.
        :raises AirflowFailException: the provider refuses the key, the model or the account.
        :raises AirflowException: rows are left without an answer; a retry goes on with them.
        """
        for name in ("httpx", "httpx2"):  # a line for each call is too much
            logging.getLogger(name).setLevel(logging.WARNING)
        queue = self._rows_to_ask()
        ticker = asyncio.create_task(self._report())
        await asyncio.gather(*(self._work(queue) for _ in range(self._at_once)))
        ticker.cancel()
        log.info("%s; %s.", self.progress, self.progress.speed())
        if self._stop:
            raise self._stop
        if self.progress.unanswered:
            raise AirflowException(
                f"{self.progress.unanswered} rows are without an answer: see the warnings. A retry goes on with them."
            )

    def _rows_to_ask(self) -> Iterator[tuple[Chunk, list[Row], Row]]:
        """The rows without a result, each with its chunk and all of the chunk's rows."""
        for chunk in self._chunks:
            known, complete = chunk.so_far()
            for result in known:
                self.progress.add(result)
                self.progress.known += 1
            if not complete:
                rows = chunk.rows()
                todo = [row for row in rows if row.number not in chunk.open_results]
                if not todo:
                    chunk.complete(rows)
                yield from ((chunk, rows, row) for row in todo)

    async def _work(self, queue: Iterator[tuple[Chunk, list[Row], Row]]) -> None:
        while not self._stop and not self._over_budget():
            self._in_flight += 1
            try:
                if (item := next(queue, None)) is None:
                    return
                chunk, rows, row = item
                if result := await self._result(chunk, row):
                    await chunk.note(result)
                    self.progress.add(result)
                    if len(chunk.open_results) == len(rows):
                        await asyncio.to_thread(chunk.complete, rows)
            except Exception as error:  # of several that fail for the same reason, the first says it
                self._stop = self._stop or error
            finally:
                self._in_flight -= 1

    async def _result(self, chunk: Chunk, row: Row) -> Result | None:
        """The row's result; None if the provider gave no answer, which a later try may get."""
        if row.text is None:
            return Result(row.number, row.id, error=row.error, error_class=row.error_class)
        await chunk.note(row.number)
        calls: list[LLMUsage] = []
        _calls_of_row.set(calls)
        for pause in (*PAUSES_S, None):
            try:
                answer, error, error_class = await self._ask(row.text)
                break
            except AirflowFailException:
                raise
            except AirflowException as problem:
                if pause is None or self._stop:
                    await self._give_up(chunk, row, calls, problem)
                    return None
                await asyncio.sleep(pause)
        self._unanswered_in_a_row = 0
        used = sum_usage(*calls)
        self.progress.usage = sum_usage(self.progress.usage, used)
        return Result(
            row.number,
            row.id,
            answer,
            error,
            error_class,
            calls=len(calls),
            input_tokens=used["input_tokens"] if used else 0,
            output_tokens=used["output_tokens"] if used else 0,
            cost_usd=used["cost_usd"] if used else 0.0,
        )

    async def _ask(self, text: str) -> tuple[dict[str, Any] | None, str, str]:
        """The answer, or an error of the row's own and its class."""
        from pydantic_ai.exceptions import ContentFilterError, UnexpectedModelBehavior

        try:
            return output_to_json((await self._agent.run(untrusted(text))).output), "", ""
        except TextTooLong as error:
            return None, str(error), "too long"
        except (RequestRefused, ContentFilterError) as error:
            return None, str(error), "refused"
        except UnexpectedModelBehavior:
            return None, "the model's answers did not have the form that was asked for", "invalid answer"

    async def _give_up(self, chunk: Chunk, row: Row, calls: list[LLMUsage], problem: AirflowException) -> None:
        log.warning("Row %d is without an answer: %s", row.number, problem)
        self.progress.unanswered += 1
        self._unanswered_in_a_row += 1
        if not calls:
            await chunk.note(-row.number)
        if self._unanswered_in_a_row >= MOST_UNANSWERED:
            self._stop = self._stop or AirflowException(
                f"{self._unanswered_in_a_row} rows in a row got no answer; the last: {problem} A retry goes on."
            )

    def _over_budget(self) -> bool:
        spent = self.progress.cost_usd
        if self._budget_usd is None or self.progress.done == self.progress.rows:
            return False
        if spent is None:
            self._stop = self._stop or AirflowFailException(
                "An answer's price is not known: the budget cannot be kept."
            )
            return True
        mean = spent / max(1, self.progress.done)
        if spent + (self._in_flight + 1) * mean <= self._budget_usd:
            return False
        if not self._in_flight:
            self._stop = self._stop or BudgetReached(
                f"The budget of this task's rows, ${self._budget_usd:.4f}, is reached: {self.progress}."
            )
        return True

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            log.info("%s; %s.", self.progress, self.progress.speed())
