"""A run over a file of rows as a batch at the provider: write the requests, report on the answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel, ValidationError

from include.batch.report import write_report
from include.batch.rows import Result, Row, RowsRun
from include.batch_api.requests import LONGEST_LINE
from include.common.json_lines import json_line, read_lines
from include.common.prices import read_price, tokens_cost
from include.common.provider_http import is_refusal_status
from include.common.storage import artifact_path
from include.common.stored_files import new_artifact, stored_file
from include.common.text import clean_json
from include.jobs.service import OpenAIService, openai_service

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

FOLDER = "batch_api_inference"
# On the price of single calls.
DISCOUNT = 0.5
ROWS_AT_ONCE = 500

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchApiRun(RowsRun):
    """A DAG run over a file of rows.

    :param conn_id: the connection to the service; it names the model.
    """

    conn_id: str

    @cached_property
    def _service(self) -> OpenAIService:
        return openai_service(self.conn_id)

    @cached_property
    def _artifacts(self) -> ObjectStoragePath:
        return artifact_path(FOLDER, self.run_id, "")

    def write_requests(self) -> dict[str, str]:
        """Write a request for each row that has a text.

        Return `{"requests": URL, "answers": URL}`: where the requests are, and where the answers are to go.

        :raises AirflowFailException: the file of rows is not valid, or the connection names no model or has a price
            that is not valid.
        """
        read_price(self._service.conn_id, self._service.extra)  # before anything is paid
        shared = {"model": self._service.base_model, "response_format": _response_format(self.output_type)}
        path, asked = self._artifacts / "requests.jsonl", 0
        with new_artifact(path) as file:
            for row in self.rows():
                if row.text is not None:
                    messages = [
                        {"role": "system", "content": self.system_prompt},
                        {"role": "user", "content": row.text},
                    ]
                    request = {"custom_id": _custom_id(row), "body": {**shared, "messages": messages}}
                    file.write(json_line(request))
                    asked += 1
        log.info("%d requests: %s", asked, path)
        return {"requests": str(path), "answers": str(self._artifacts / "answers.jsonl")}

    def report(self, answers: str) -> dict[str, str]:
        """Check each answer, and write the results: see `write_report`.

        :param answers: URL of the output of `OpenAIBatchOperator`.
        :raises AirflowFailException: more rows ended without a valid answer than is allowed.
        """
        results = self._results(stored_file(answers))
        parts = iter(lambda: list(islice(results, ROWS_AT_ONCE)), [])
        advice = "Clear the previous task to send again the rows that may get an answer; the others are not paid again."
        return write_report(self, self._artifacts, parts, advice)

    def _results(self, answers: ObjectStoragePath) -> Iterator[Result]:
        """Yield each row's result. The answers are in the order of the rows; rows that were not asked have none."""
        with answers.open("rb") as file:
            lines = read_lines(file, LONGEST_LINE)
            for row in self.rows():
                if row.text is None:
                    yield Result(row.number, row.id, error=row.error, error_class=row.error_class)
                    continue
                _, line = next(lines, (0, None))
                answer = json.loads(clean_json((line or b"{}").decode()))
                if answer.get("custom_id") != _custom_id(row):
                    raise AirflowFailException(
                        f"{answers} does not belong to these rows: clear the first task and all after it."
                    )
                yield self._result(row, answer)

    def _result(self, row: Row, answer: dict[str, Any]) -> Result:
        if error := answer["error"]:
            text = ", ".join(str(value) for value in (error["status"], error["code"], error["message"]) if value)
            error_class = "refused" if is_refusal_status(error["status"]) else "unanswered"
            return Result(row.number, row.id, error=text, error_class=error_class)
        from openai.types.chat import ChatCompletion

        try:
            reply = ChatCompletion.model_validate(answer["response"])
            choice, usage = reply.choices[0], reply.usage
        except (ValidationError, IndexError):
            error = "the provider's answer has no choices"
            return Result(row.number, row.id, error=error, error_class="invalid answer")
        used: dict[str, Any] = {"calls": 1}
        if usage:
            cost = batch_cost(self._service, self._service.base_model, usage.prompt_tokens, usage.completion_tokens)
            used |= {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens, "cost_usd": cost}
        if choice.message.refusal:
            return Result(row.number, row.id, error=choice.message.refusal, error_class="refused", **used)
        try:
            found = self.output_type.model_validate_json(clean_json(choice.message.content or ""))
        except ValidationError:
            error = f"the answer is not a {self.output_type.__name__} (finish_reason {choice.finish_reason})"
            return Result(row.number, row.id, error=error, error_class="invalid answer", **used)
        return Result(row.number, row.id, found.model_dump(mode="json"), **used)


def _custom_id(row: Row) -> str:
    return f"row-{row.number}"


def _response_format(output_type: type[BaseModel]) -> dict[str, Any]:
    from openai import pydantic_function_tool

    schema = pydantic_function_tool(output_type)["function"]["parameters"]
    return {"type": "json_schema", "json_schema": {"name": output_type.__name__, "strict": True, "schema": schema}}


def batch_cost(service: OpenAIService, model: str, input_tokens: int, output_tokens: int) -> float | None:
    """Return the price of answers in US dollars, half the price of single calls; None if it is not known.

    :raises AirflowFailException: the price in the connection's extra is not valid.
    """
    cost = tokens_cost(service.conn_id, service.extra, model, input_tokens, output_tokens)
    return None if cost is None else cost * DISCOUNT
