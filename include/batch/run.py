"""A run over a file of rows: plan (cut the rows into chunks and share these among tasks), answer, report."""

from __future__ import annotations

import asyncio
import json
import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import get_current_context

from include.ai import LLM_CONN_ID
from include.ai.layers import LayeredModel, layered_model
from include.batch.answering import Answering, Progress
from include.batch.chunks import Chunk, write_chunks
from include.batch.claim import claim
from include.batch.report import write_report
from include.batch.rows import Result, RowsRun
from include.common.prices import tokens_cost
from include.common.storage import artifact_path, name_on_storage, read_artifact, storage_path, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

FOLDER = "batch_inference_at_scale"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchRun(RowsRun):
    """A DAG run over a file of rows, which also has the params `batch` and `budget_usd`.

    :param conn_id: the connection to the model.
    """

    conn_id: str = LLM_CONN_ID

    @property
    def _batch(self) -> str:
        return self.params["batch"] or self.run_id

    @cached_property
    def folder(self) -> ObjectStoragePath:
        """The folder with the batch's chunks."""
        return storage_path(FOLDER, name_on_storage(self._batch))

    @cached_property
    def _artifacts(self) -> ObjectStoragePath:
        return artifact_path(FOLDER, self.run_id, "")

    def plan(self, tasks: int) -> list[list[int]]:
        """Read all rows, write them in chunks, and return each task's first chunk, and the one after its last.

        :raises AirflowFailException: the file is not valid, there is a budget but no price, or another run is answering
            the batch.
        """
        claim(self.folder, get_current_context()["ti"])
        models = layered_model(self.conn_id).models
        if self.params["budget_usd"] is not None:
            for model in models:
                _check_price(model)
        chunks = list(write_chunks(self.rows(), self.settings(models[0]), self.folder, tasks))
        write_artifact(self._artifacts / "chunks.json", json.dumps(chunks))
        log.info("%d rows in %d chunks, below %s.", sum(n for _, n in chunks), len(chunks), self.folder)
        return share_out([n for _, n in chunks], tasks)

    def settings(self, model: LayeredModel) -> str:
        """Return everything besides the row that decides its answer."""
        return json.dumps([model.source.model_id, self.system_prompt, self.output_type.model_json_schema()])

    def answer(self, share: Sequence[int], at_once: int) -> Progress:
        """Answer the rows of these chunks. The mapped task shows its progress as its name, also if it fails.

        :param share: an item of the list that `plan` returns.
        :param at_once: rows in flight.
        :raises AirflowException: see `Answering.run`.
        """
        context: Any = get_current_context()
        claim(self.folder, context["ti"])
        chunks = self._chunks()
        mine = chunks[slice(*share)]
        rows, budget = sum(n for _, n in mine), self.params["budget_usd"]
        answering = Answering(
            [Chunk(self.folder / name) for name, _ in mine],
            rows,
            system_prompt=self.system_prompt,
            output_type=self.output_type,
            at_once=at_once,
            budget_usd=None if budget is None else budget * rows / sum(n for _, n in chunks),
            conn_id=self.conn_id,
        )
        try:
            asyncio.run(answering.run())
        finally:
            context["progress"] = str(answering.progress)
            answering.usage.publish()
        return answering.progress

    def report(self) -> dict[str, str]:
        """Put the results together: see `write_report`.

        :raises AirflowFailException: more rows are without an answer than is allowed.
        """
        advice = (
            f"To go on with the rows that were not asked, trigger the DAG with batch={self._batch!r}, and a higher "
            "budget_usd if the budget was reached: answered rows are not paid again."
        )
        return write_report(self, self._artifacts, self._results(), advice)

    def _chunks(self) -> list[tuple[str, int]]:
        try:
            listed = read_artifact(self._artifacts / "chunks.json")
        except FileNotFoundError:
            raise AirflowFailException("There is nothing to report: the task that reads the rows failed.") from None
        return [(name, rows) for name, rows in json.loads(listed)]

    def _results(self) -> Iterator[list[Result]]:
        """Yield the results of each chunk, in the order of the input."""
        for name, _ in self._chunks():
            chunk = Chunk(self.folder / name)
            results, complete = chunk.so_far()
            if not complete:
                known = {result.row: result for result in results}
                results = [
                    known.get(row.number) or Result(row.number, row.id, error="not answered", error_class="unanswered")
                    for row in chunk.rows()
                ]
            yield results


def share_out(sizes: Sequence[int], tasks: int) -> list[list[int]]:
    """Share chunks of these sizes evenly among tasks; return each task's first chunk, and the one after its last."""
    ends = list(accumulate(sizes))
    cuts = [bisect_left(ends, ends[-1] * part / tasks) + 1 for part in range(1, tasks + 1)]
    return [[start, end] for start, end in pairwise([0, *cuts]) if start < end]


def answer_cost(model: LayeredModel, input_tokens: int, output_tokens: int) -> float | None:
    """Return the cost of so many tokens of a model in US dollars; None if its price is not known."""
    source = model.source
    return tokens_cost(
        source.conn_id, source.layer_args, source.model_id.partition(":")[2], input_tokens, output_tokens
    )


def _check_price(model: LayeredModel) -> None:
    """Check that the price of a model's answers is known, as far as its name shows.

    :raises AirflowFailException: it is not.
    """
    if answer_cost(model, 1, 1) is None:
        raise AirflowFailException(
            f"Connection {model.conn_id!r}: the price of {model.source.model_id!r} is not known, so the budget cannot "
            'be kept. Set the extra {"usd_per_million_tokens": {"input": ..., "output": ...}}, or set no budget_usd.'
        )
