"""What a batch would cost, before anything is asked."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk.execution_time.context import set_current_context

from include.ai.layers import layered_model
from include.batch.chunks import Chunk, cut
from include.batch.rows import Result, Row
from include.batch.run import BatchRun, answer_cost
from include.common.prices import shown_usd

# Where no row has been answered yet: characters per token, and tokens of an answer.
CHARACTERS, ANSWER_TOKENS = 4, 50


def price_of_batch(file: Path, params: Mapping[str, Any], rows: Iterable[Row] | None = None) -> str:
    """Say what a run of a batch DAG would cost. Nothing is asked or written.

    :param file: the DAG's, which has `run` and TASKS, as that of batch_inference_at_scale.
    :param params: of the run; without `batch` nothing is answered yet.
    :param rows: the rows, if they are not those of the params.
    :raises AirflowFailException: it is not such a DAG, or the connection or the rows are not valid.
    :raises OSError: the storage cannot be read.
    """
    module = runpy.run_path(str(file))
    if "run" not in module or "TASKS" not in module:
        raise AirflowFailException(f"{file.stem!r} has no rows to price, as a DAG like batch_inference_at_scale has.")
    context: Any = {"run_id": "price", "params": {"limit": None, "budget_usd": None, **params}}
    with set_current_context(context):
        run: BatchRun = module["run"]()
    model = layered_model(run.conn_id, reuse="try").models[0]
    answered: list[Result] = []
    count, characters, to_ask = 0, 0, 0
    for name, lines in cut(run.rows() if rows is None else rows, run.settings(model), module["TASKS"]):
        results, _ = Chunk(run.folder / name).so_far()
        done = {result.row for result in results}
        open_rows = [row for row in (Row(*json.loads(line)) for line in lines) if row.number not in done]
        texts = [row.text for row in open_rows if row.text is not None]
        answered += [result for result in results if result.calls]
        count, to_ask = count + len(lines), to_ask + len(texts)
        characters += sum(map(len, texts))
    if answered:
        basis = f"the mean of {len(answered):,} answered rows"
        tokens_in = round(to_ask * sum(result.input_tokens for result in answered) / len(answered))
        tokens_out = round(to_ask * sum(result.output_tokens for result in answered) / len(answered))
    else:
        form = len(run.system_prompt) + len(json.dumps(run.output_type.model_json_schema()))
        basis = f"{CHARACTERS} characters a token, {ANSWER_TOKENS} tokens an answer"
        tokens_in = (characters + to_ask * form) // CHARACTERS
        tokens_out = to_ask * ANSWER_TOKENS
    cost = answer_cost(model, tokens_in, tokens_out)
    return (
        f"{file.stem}: {count:,} rows, {count - to_ask:,} of them need no call, {to_ask:,} are to be asked.\n"
        f"They take about {tokens_in:,} input and {tokens_out:,} output tokens ({basis}): "
        f"{'a price that is not known' if cost is None else shown_usd(cost)}."
    )
