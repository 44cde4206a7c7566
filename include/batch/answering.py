"""Answer the rows of a batch with a model: many at once, each paid once, within a budget."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic_ai.exceptions import ContentFilterError, UnexpectedModelBehavior
from pydantic_ai.usage import RunUsage

from include.ai import LLM_CONN_ID
from include.ai.asking import Asking
from include.ai.layers import layered_model
from include.ai.limited_model import LimitedModel, TaskUsage
from include.ai.model import RequestRefused, TextTooLong
from include.batch.chunks import Chunk
from include.batch.rows import Result, Row

try:
    from include.traces import chunks as chunk_spans
except ImportError:  # a copied pattern may lack it
    chunk_spans = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pydantic import BaseModel

# Pauses before a row without an answer is asked again. Each time, the model has already repeated its call.
PAUSES_S = (2.0, 10.0, 30.0)
# After so many consecutive rows without an answer, the provider counts as down, and the try ends.
MOST_UNANSWERED = 10
PROGRESS_S = 10.0

log = logging.getLogger(__name__)


class BudgetReached(AirflowFailException):
    """The budget of the rows is spent. The answers so far are kept."""


@dataclass
class Progress:
    """Counts over the rows of a task; `known` of them were done before the current try.

    `cost_usd` is None as soon as the price of one call is unknown.
    """

    rows: int
    done: int = 0
    known: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    cost_usd: float | None = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        """Count a row that is done."""
        self.done += 1
        if result.error_class:
            self.errors[result.error_class] += 1
        self.cost_usd = None if self.cost_usd is None or result.cost_usd is None else self.cost_usd + result.cost_usd

    def __str__(self) -> str:
        """Return the progress as text, for the log and the UI."""
        text = f"{self.done:,} of {self.rows:,} rows"
        if failed := self.errors.total():
            text += f", {failed:,} failed"
        if self.cost_usd:
            text += f", ${self.cost_usd:.4f}"
        return text

    def log(self) -> None:
        """Log the progress, with the rows per second of this try and the time left at that rate."""
        per_second = (self.done - self.known) / (time.monotonic() - self.started)
        left = f", about {(self.rows - self.done) / per_second:.0f} s left" if per_second else ""
        log.info("%s; %.1f rows/s%s.", self, per_second, left)


class Answering:
    """One task's work: the rows of its chunks.

    :param chunks: in the order of the input.
    :param rows: how many rows these chunks have in total.
    :param system_prompt: what the model is to do with each row's text.
    :param output_type: the form of an answer.
    :param at_once: rows in flight.
    :param conn_id: the connection to the model.
    :param budget_usd: US dollars that these rows may cost over all tries and runs; None for no limit.
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
        conn_id: str = LLM_CONN_ID,
    ) -> None:
        self.progress = Progress(rows)
        self.usage = TaskUsage()
        self._chunks = chunks
        model = layered_model(conn_id, lambda conn_id: LimitedModel(conn_id, self.usage, at_once), reuse="try")
        self._model = Asking(model, system_prompt, output_type)
        self._at_once = at_once
        self._budget_usd = budget_usd
        self._in_flight = 0
        self._unanswered_in_a_row = 0
        self._stop: Exception | None = None
        self._spans = chunk_spans.ChunkSpans() if chunk_spans else None

    async def run(self) -> None:
        """Answer every row that has no result yet.

        If this ends early, the calls in flight are still awaited, so that they are not paid again.

        :raises BudgetReached: the remaining rows would exceed the budget.
        :raises AirflowFailException: the provider refuses the key, the model or the account.
        :raises AirflowException: rows are left without an answer; a retry goes on with them.
        """
        queue = self._rows_to_ask()
        ticker = asyncio.create_task(self._log_progress())
        await asyncio.gather(*(self._work(queue) for _ in range(self._at_once)))
        ticker.cancel()
        if self._spans:
            self._spans.end_all()
        self.progress.log()
        if self._stop:
            raise self._stop
        if self.progress.unanswered:
            raise AirflowException(
                f"{self.progress.unanswered} rows are without an answer: see the warnings. A retry goes on with them."
            )

    def _rows_to_ask(self) -> Iterator[tuple[Chunk, list[Row], Row]]:
        """Yield each row without a result, with its chunk and all rows of the chunk."""
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
                name = chunk.folder.name
                with self._spans.row(name, row.number) if self._spans else nullcontext():
                    result = await self._result(row)
                if result:
                    await chunk.note(result)
                    self.progress.add(result)
                    if self._spans:
                        self._spans.add(name, result)
                    if len(chunk.open_results) == len(rows):
                        await asyncio.to_thread(chunk.complete, rows)
                        if self._spans:
                            self._spans.end(name)
            except Exception as error:  # of several, the first says why
                self._stop = self._stop or error.with_traceback(None)  # which is 40 frames of libraries
            finally:
                self._in_flight -= 1

    async def _result(self, row: Row) -> Result | None:
        """Answer the row. Return None if the provider gave no answer; a later try may get one."""
        if row.text is None:
            return Result(row.number, row.id, error=row.error, error_class=row.error_class)
        used = RunUsage()  # of all tries, including those that fail
        for pause in (*PAUSES_S, None):
            try:
                answer, error, error_class = await self._ask(row.text, used)
                break
            except AirflowFailException:
                raise
            except AirflowException as problem:
                if pause is None or self._stop:
                    self._leave(row, problem)
                    return None
                await asyncio.sleep(pause)
        self._unanswered_in_a_row = 0
        tokens = {"input_tokens": used.input_tokens, "output_tokens": used.output_tokens}
        cost = None if used.requests and used.cost is None else float(used.cost or 0)
        return Result(row.number, row.id, answer, error, error_class, used.requests, **tokens, cost_usd=cost)

    async def _ask(self, text: str, used: RunUsage) -> tuple[dict[str, Any] | None, str, str]:
        """Return the answer, or an error that concerns this row only, and its class."""
        try:
            return await self._model.ask(text, used), "", ""
        except TextTooLong as error:
            return None, str(error), "too long"
        except (RequestRefused, ContentFilterError) as error:
            return None, str(error), "refused"
        except UnexpectedModelBehavior:
            return None, "the model's answers did not have the required form", "invalid answer"

    def _leave(self, row: Row, problem: AirflowException) -> None:
        """Leave the row for a later try."""
        log.warning("Row %d is without an answer: %s", row.number, problem)
        self.progress.unanswered += 1
        self._unanswered_in_a_row += 1
        if self._unanswered_in_a_row >= MOST_UNANSWERED:
            self._stop = self._stop or AirflowException(
                f"{self._unanswered_in_a_row} consecutive rows got no answer; the last: {problem} A retry goes on."
            )

    def _over_budget(self) -> bool:
        spent = self.progress.cost_usd
        if self._budget_usd is None or self.progress.done == self.progress.rows:
            return False
        if spent is None:
            self._stop = self._stop or AirflowFailException(
                "The price of an answer is not known, so the budget cannot be kept."
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

    async def _log_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            self.progress.log()
