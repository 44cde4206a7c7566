"""What a batch would cost, before anything is asked: `make price DAG=batch_inference_at_scale FILE=rows.csv`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from include.ai.model import ConnectionModel, connection_model
from include.ai.usage import stated_price
from include.batch.chunks import Chunk, cut
from include.batch.rows import Result, Row
from include.batch.run import BatchRun
from include.common.prices import listed_cost

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


def price_of_rows(run: BatchRun, rows: Iterable[Row], tasks: int) -> Price:
    """Say what a run over these rows would ask. Nothing is asked or written.

    :param tasks: among how many the run shares its rows, as few rows are cut accordingly.
    :raises AirflowFailException: the connection or the rows are not as they should be.
    :raises OSError: the storage cannot be read.
    """
    model = connection_model(run.conn_id, reuse="try").models[0]
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


def _cost(model: ConnectionModel, input_tokens: int, output_tokens: int) -> float | None:
    if price := stated_price(model.source):
        return price.cost(input_tokens, output_tokens)
    return listed_cost(model.source.model_id.partition(":")[2], input_tokens, output_tokens)
