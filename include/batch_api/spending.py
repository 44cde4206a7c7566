"""What batches cost."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from include.batch_api.requests import LONGEST_LINE, Request, read_requests
from include.batch_api.rounds import Rounds
from include.batch_api.run import batch_cost
from include.common.fingerprint import fingerprint
from include.common.json_lines import read_lines
from include.common.storage import name_on_storage
from include.common.stored_files import input_file
from include.jobs.record import JobKey
from include.jobs.service import OpenAIService
from include.jobs.spending import JobSpending
from include.spend.budgets import PRICE_FORM
from include.spend.ledger import Call

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from include.batch_api.operator import OpenAIBatchOperator
    from include.jobs.job import Job

# More than a token has, as the estimate must not exceed the cost.
BYTES_PER_TOKEN = 8


class BatchSpending(JobSpending):
    """Count batches. The estimate is for the questions only, as the length of the answers is not known."""

    price_form = PRICE_FORM

    def estimate(self, operator: OpenAIBatchOperator, service: OpenAIService) -> tuple[str, float | None]:
        requests = input_file(operator.input_url)
        model = _first_body(requests).get("model", "")
        return model, batch_cost(service, model, requests.stat().st_size // BYTES_PER_TOKEN, 0)

    def call(self, operator: OpenAIBatchOperator, service: OpenAIService, ti: Any, job: Job) -> Call:
        body = _first_body(input_file(operator.input_url))
        messages = [each for each in body.get("messages", []) if isinstance(each, dict)]
        asked = [each for each in messages if each.get("role") != "user"]
        model = body.get("model", "")
        folder = Rounds(JobKey(ti).value, ti.max_tries).folder
        answers, tokens_in, tokens_out = _tokens_used(folder / f"{name_on_storage(job.id)}.output.jsonl")
        return Call(
            "batch",
            service.conn_id,
            model,
            fingerprint(asked, body.get("response_format")),
            answers,
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            cost_usd=batch_cost(service, model, tokens_in, tokens_out),
        )


batch_spending = BatchSpending()


def _first_body(requests: ObjectStoragePath) -> dict[str, Any]:
    """Return the body of the first request; empty if there is none."""
    first = next((request for _, request in read_requests(requests)), None)
    return first.body if isinstance(first, Request) else {}


def _tokens_used(answers: ObjectStoragePath) -> tuple[int, int, int]:
    """Return how many answers a file of the provider has, and their input and output tokens; zeros if it is missing."""
    number = tokens_in = tokens_out = 0
    with suppress(FileNotFoundError), answers.open("rb") as file:
        for _, line in read_lines(file, LONGEST_LINE):
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                usage = json.loads(line or b"")["response"]["body"]["usage"]
                tokens_in += int(usage["prompt_tokens"])
                tokens_out += int(usage["completion_tokens"])
                number += 1
    return number, tokens_in, tokens_out
