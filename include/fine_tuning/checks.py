"""The steps before a fine-tuning job: ask the service what it offers, check the examples, estimate the cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import Field

from include.common.connection_extra import read_setting
from include.common.stored_files import input_file
from include.fine_tuning.api import training_cost
from include.fine_tuning.examples import CheckedFile, Example, check_files, examples
from include.jobs.service import OpenAIService, describe, task_error

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINING = EXAMPLES / "train" / "training_data.jsonl"
VALIDATION = EXAMPLES / "validation" / "validation_data.jsonl"

# What OpenAI has announced, as of November 2026.
OPENAI_CLOSED_TO_NEW = date(2026, 5, 7)
OPENAI_ENDS = date(2027, 1, 6)
INSTEAD = (
    "Point the connection at another service with OpenAI's fine-tuning API (host, password, extra.model), or do "
    "without tuning: a current model that is shown a few similar examples in its prompt often does as well."
)
PROBLEMS_IN_ERROR = 50
# How many tokens of an example a model learns from: OpenAI's models, by the beginning of their names, and any other.
# `max_example_tokens` in the connection's extra overrides both.
EXAMPLE_TOKENS = {"gpt-4o": 65_536, "gpt-4.1": 65_536}
OTHER_EXAMPLE_TOKENS = 16_385

log = logging.getLogger(__name__)


def files_of_run(params: Mapping[str, Any]) -> tuple[ObjectStoragePath, ObjectStoragePath]:
    """Return the training and the validation file of a run's params, by default the bundled ones."""
    return input_file(params["training_file"], TRAINING), input_file(params["validation_file"], VALIDATION)


def evaluation_examples(params: Mapping[str, Any]) -> list[Example]:
    """Read the first examples of the validation file, at most `evaluation_size` of the params."""
    with files_of_run(params)[1].open("rb") as file:
        return list(islice(examples(file), params["evaluation_size"]))


async def preflight(service: OpenAIService) -> str:
    """Ask the service, at no cost, whether it would accept a job, and return the base model.

    :raises AirflowFailException: it no longer offers the base model, or no fine-tuning to this account.
    """
    from openai import APIError, NotFoundError, PermissionDeniedError

    model, today = service.base_model, datetime.now(UTC).date()
    if service.is_openai and today >= OPENAI_ENDS:
        raise AirflowFailException(f"OpenAI has accepted no new fine-tuning jobs since {OPENAI_ENDS}. {INSTEAD}")
    async with service.client() as client:
        try:
            await client.models.retrieve(model)
        except NotFoundError:
            offered = ", ".join(sorted([each.id async for each in client.models.list()])[:20])
            raise AirflowFailException(
                f"{service} does not offer the base model {model!r} to this account (any more). It offers: {offered}. "
                'Set the connection\'s extra {"model": ...} to one that it fine-tunes.'
            ) from None
        except APIError as error:
            raise task_error(service, f"asking for the model {model!r}", error) from None
        try:
            jobs = await client.fine_tuning.jobs.list(limit=1)
        except (NotFoundError, PermissionDeniedError) as error:
            raise AirflowFailException(
                f"{service} offers no fine-tuning to this account ({describe(error)}). {INSTEAD}"
            ) from None
        except APIError as error:
            raise task_error(service, "listing the fine-tuning jobs", error) from None
    if service.is_openai and not jobs.data:
        log.warning(
            "This account has no fine-tuning job yet. OpenAI has refused accounts without one since %s, and will "
            "refuse all accounts from %s on. If the job is refused: %s",
            OPENAI_CLOSED_TO_NEW,
            OPENAI_ENDS,
            INSTEAD,
        )
    return model


def most_tokens(service: OpenAIService) -> int:
    """Return how many tokens of an example the base model learns from.

    :raises AirflowFailException: the connection names no base model, or its number of tokens is not valid.
    """
    model = service.base_model
    known = next((most for name, most in EXAMPLE_TOKENS.items() if model.startswith(name)), OTHER_EXAMPLE_TOKENS)
    form = Annotated[int, Field(strict=True, gt=0)]
    stated: int | None = read_setting(service.conn_id, service.extra, "max_example_tokens", form)
    return stated or known


def check_examples(
    service: OpenAIService, training: ObjectStoragePath, validation: ObjectStoragePath
) -> tuple[CheckedFile, CheckedFile]:
    """Check both files.

    :raises AirflowFailException: the message names the bad lines, up to 50; the log has up to 1,000 per file.
    """
    with training.open("rb") as one, validation.open("rb") as two:
        checked = check_files((training.name, one), (validation.name, two), most_tokens(service))
    problems = [problem for file in checked for problem in file.problems]
    for problem in problems:
        log.error("%s", problem)
    if problems:
        count = sum(file.problem_count for file in checked)
        shown = "\n".join(str(problem) for problem in problems[:PROBLEMS_IN_ERROR])
        more = f"\n... and {count - PROBLEMS_IN_ERROR} more: see the log." if count > PROBLEMS_IN_ERROR else ""
        raise AirflowFailException(f"{count} problems with the examples; nothing was uploaded:\n{shown}{more}")
    return checked


def estimate(service: OpenAIService, tokens: int, n_epochs: int, budget_usd: float | None) -> dict[str, Any]:
    """Return `{"tokens": number, "cost_usd": number or None}`: the tokens that training is billed for, and their price.

    :raises AirflowFailException: the price is above the budget, or there is a budget but no price.
    """
    trained = tokens * n_epochs
    cost = training_cost(service, trained)
    if budget_usd is not None:
        if cost is None:
            raise AirflowFailException(
                f"{service} states no price, so the budget of ${budget_usd:.2f} cannot be kept. Set the connection's "
                'extra {"training_usd_per_million_tokens": <price of the base model>}, or run without a budget '
                "(budget_usd: null)."
            )
        if cost > budget_usd:
            raise AirflowFailException(
                f"Training on about {trained:,} tokens ({n_epochs} epochs) would cost about ${cost:.2f}, more than "
                f"the budget of ${budget_usd:.2f}. Nothing was spent. Raise budget_usd, or use fewer examples."
            )
    return {"tokens": trained, "cost_usd": cost}
