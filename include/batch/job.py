"""A batch from its file to its report: cut the rows into chunks, share these among tasks, answer, put together."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import get_current_context

from include.ai import LLM_CONN_ID
from include.ai.connection import read_model_source
from include.ai.model import DEFAULT_MODEL
from include.ai.usage import USAGE_XCOM_KEY
from include.batch.answering import Answering
from include.batch.chunks import Chunk, Result, write_chunks
from include.batch.progress import Progress
from include.batch.report import BatchReport
from include.batch.rows import read_rows
from include.common.storage import artifact_path, local_file, name_on_storage, storage_path, stored_file, write_artifact
from include.sample.data import FOLDER as SAMPLE_DATA

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from pydantic import BaseModel

FOLDER = "batch_inference"
UNANSWERED = "unanswered"

log = logging.getLogger(__name__)


class Batch:
    """The batch of a DAG run.

    :param run_id: the run.
    :param params: the run's params: `input`, `text_column`, `id_column`, `limit`, `job`, `budget_usd`,
        `allowed_failures` and `output_format`.
    :param system_prompt: tells the model what to do with each row's text.
    :param output_type: the form of an answer.
    """

    def __init__(self, run_id: str, params: Mapping[str, Any], system_prompt: str, output_type: type[BaseModel]):
        self._params = params
        self._system_prompt = system_prompt
        self._output_type = output_type
        self._job = params["job"] or run_id
        self._folder = storage_path(FOLDER, name_on_storage(self._job))
        self._artifacts = artifact_path(FOLDER, run_id, "")

    def plan(self, tasks: int) -> list[list[int]]:
        """Read all rows, write them in chunks, and return for each task which chunks are its own: from, and up to.

        :raises AirflowFailException: the file is not as it should be, or there is a budget and no price.
        """
        source = read_model_source(LLM_CONN_ID, DEFAULT_MODEL)
        if self._params["budget_usd"] is not None and not source.has_price:
            raise AirflowFailException(
                f"Connection {LLM_CONN_ID!r}: the price of {source.model_id!r} is not known, so the budget cannot be "
                'kept. Set the extra {"usd_per_million_tokens": {"input": ..., "output": ...}}, or set no budget_usd.'
            )
        settings = json.dumps([source.model_id, self._system_prompt, self._output_type.model_json_schema()])
        rows = read_rows(input_file(self._params["input"]), self._params["text_column"], self._params["id_column"])
        chunks = list(write_chunks(islice(rows, self._params["limit"]), settings, self._folder, tasks))
        write_artifact(self._artifacts / "chunks.json", json.dumps(chunks))
        log.info("%d rows in %d chunks, below %s.", sum(n for _, n in chunks), len(chunks), self._folder)
        most = -(-len(chunks) // tasks)
        return [[start, min(start + most, len(chunks))] for start in range(0, len(chunks), most)]

    def answer(self, share: Sequence[int], at_once: int) -> Progress:
        """Answer the rows of these chunks. The mapped task is named by its progress, however it ends.

        :raises AirflowException: see `Answering.run`.
        """
        chunks = self._chunks()
        mine = chunks[slice(*share)]
        rows, budget = sum(n for _, n in mine), self._params["budget_usd"]
        answering = Answering(
            [Chunk(self._folder / name) for name, _ in mine],
            rows,
            system_prompt=self._system_prompt,
            output_type=self._output_type,
            at_once=at_once,
            budget_usd=None if budget is None else budget * rows / sum(n for _, n in chunks),
        )
        context: Any = get_current_context()
        try:
            asyncio.run(answering.run())
        finally:
            context["progress"] = str(answering.progress)
            context["ti"].xcom_push(key=USAGE_XCOM_KEY, value=answering.progress.usage)
        return answering.progress

    def report(self) -> dict[str, Any]:
        """Put the results together: see `BatchReport`.

        :raises AirflowFailException: more rows failed, or are without an answer, than is allowed.
        """
        report = BatchReport(self._artifacts, self._output_type, self._params["output_format"])
        report.write(self._results())
        advice = (
            f"To go on with those that were not asked, trigger the DAG with job={self._job!r} and, if it was the "
            "budget, a higher budget_usd: what was answered is not paid again."
        )
        return report.end(self._params["allowed_failures"], advice)

    def _chunks(self) -> list[tuple[str, int]]:
        try:
            listed = (self._artifacts / "chunks.json").read_bytes()
        except FileNotFoundError:
            raise AirflowFailException("There is nothing to report: the task that reads the rows failed.") from None
        return [(name, rows) for name, rows in json.loads(listed)]

    def _results(self) -> Iterator[list[Result]]:
        """The results of each chunk, in the order of the input."""
        for name, _ in self._chunks():
            chunk = Chunk(self._folder / name)
            results, complete = chunk.so_far()
            if not complete:
                known = {result.row: result for result in results}
                results = [
                    known.get(row.number) or Result(row.number, row.id, error="not answered", error_class=UNANSWERED)
                    for row in chunk.rows()
                ]
            yield results


def input_file(url: str | None) -> ObjectStoragePath:
    """The file at this URL of the project's storage; the sample reviews if there is none.

    :raises AirflowFailException: the URL is of somewhere else.
    """
    try:
        return stored_file(url) if url else local_file(SAMPLE_DATA / "reviews.csv")
    except ValueError as error:
        raise AirflowFailException(str(error)) from None
