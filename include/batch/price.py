"""What a batch would cost, before anything is asked."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk.execution_time.context import set_current_context

from include.ai.layers import LayeredModel, layered_model
from include.ai.usage import stated_price
from include.batch.chunks import Chunk, cut
from include.batch.rows import Result, Row
from include.batch.run import BatchRun
from include.common.prices import listed_cost, shown_usd

# Where no row has been answered yet: characters per token, and tokens of an answer.
CHARACTERS, ANSWER_TOKENS = 4, 50


@dataclass
class Price:
    """What rows are still to be asked, with their tokens and US dollars.

    :param basis: where the tokens come from.
    :param cost_usd: None if the model's price is not known.
    """

    rows: int
    stored: int
    to_ask: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    basis: str


def price_of_batch(file: Path, params: Mapping[str, Any], rows: Iterable[Row] | None = None) -> str:
    """Say what a run of a batch DAG would cost.

    :param file: the DAG's, which has `run` and TASKS, as that of batch_inference_at_scale.
    :param params: of the run; without `batch` nothing is answered yet.
    :param rows: the rows, if they are not those of the params.
    :raises AirflowFailException: it is not such a DAG, or see `price_of_rows`.
    """
    module = runpy.run_path(str(file))
    if "run" not in module or "TASKS" not in module:
        raise AirflowFailException(f"{file.stem!r} has no rows to price, as a DAG like batch_inference_at_scale has.")
    context: Any = {"run_id": "price", "params": {"limit": None, "budget_usd": None, **params}}
    with set_current_context(context):
        run = module["run"]()
    price = price_of_rows(run, run.rows() if rows is None else rows, module["TASKS"])
    cost = "a price that is not known" if price.cost_usd is None else shown_usd(price.cost_usd)
    return (
        f"{file.stem}: {price.rows:,} rows, {price.stored:,} of them need no call, {price.to_ask:,} are to be asked.\n"
        f"They take about {price.input_tokens:,} input and {price.output_tokens:,} output tokens ({price.basis}): "
        f"{cost}."
    )


def price_of_rows(run: BatchRun, rows: Iterable[Row], tasks: int) -> Price:
    """Say what a run over these rows would ask. Nothing is asked or written.

    :param tasks: among how many the run shares its rows, as few rows are cut accordingly.
    :raises AirflowFailException: the connection or the rows are not as they should be.
    :raises OSError: the storage cannot be read.
    """
    model = layered_model(run.conn_id, reuse="try").models[0]
    known: list[Result] = []
    count, characters, to_ask = 0, 0, 0
    for name, lines in cut(rows, run.settings(model), tasks):
        results, _ = Chunk(run.folder / name).so_far()
        done = {result.row for result in results}
        open_rows = [row for row in (Row(*json.loads(line)) for line in lines) if row.number not in done]
        texts = [row.text for row in open_rows if row.text is not None]
        known += [result for result in results if result.calls]
        count, to_ask = count + len(lines), to_ask + len(texts)
        characters += sum(map(len, texts))
    if known:
        basis = f"the mean of {len(known):,} answered rows"
        tokens_in = round(to_ask * sum(result.input_tokens for result in known) / len(known))
        tokens_out = round(to_ask * sum(result.output_tokens for result in known) / len(known))
    else:
        form = len(run.system_prompt) + len(json.dumps(run.output_type.model_json_schema()))
        basis = f"{CHARACTERS} characters a token, {ANSWER_TOKENS} tokens an answer"
        tokens_in = (characters + to_ask * form) // CHARACTERS
        tokens_out = to_ask * ANSWER_TOKENS
    cost = _cost(model, tokens_in, tokens_out)
    return Price(count, count - to_ask, to_ask, tokens_in, tokens_out, cost, basis)


def _cost(model: LayeredModel, input_tokens: int, output_tokens: int) -> float | None:
    if price := stated_price(model.source):
        return price.cost(input_tokens, output_tokens)
    return listed_cost(model.source.model_id.partition(":")[2], input_tokens, output_tokens)
