"""What of a model's call goes into the ledger (see `include.spend.ledger`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_ai.messages import ModelMessage, ModelResponse, SystemPromptPart

from include.common.prices import read_price
from include.spend.ledger import Call, fingerprint, record

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingResult
    from pydantic_ai.models import ModelRequestParameters

    from include.ai.connection import ModelSource


def record_chat(
    conn_id: str,
    model: str,
    messages: list[ModelMessage],
    parameters: ModelRequestParameters,
    response: ModelResponse | None,
    seconds: float,
    calls: int = 1,
) -> None:
    """Record a call of a chat model: its answer, or `calls` calls without one."""
    call = Call("chat", conn_id, model, prompt_of(messages, parameters), calls, seconds=seconds, failed=not response)
    if response:
        usage = response.usage
        call = call._replace(
            model=response.model_name or model,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cache_read_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=None if usage.cost is None else float(usage.cost),
        )
    record(call)


def record_embedding(source: ModelSource, result: EmbeddingResult | None, seconds: float) -> None:
    """Record a request for embeddings: its vectors, or that there are none."""
    call = Call("embedding", source.conn_id, source.model_id, seconds=seconds, failed=result is None)
    if result:
        price = read_price(source.conn_id, source.layer_args)
        tokens = result.usage.input_tokens
        cost = price.cost(tokens, 0) if price else _listed_cost(result)
        call = call._replace(model=result.model_name, input_tokens=tokens, cost_usd=cost)
    record(call)


def prompt_of(messages: list[ModelMessage], parameters: ModelRequestParameters) -> str:
    """Return the fingerprint of a prompt without its data: instructions, form of the answer, and tools."""
    instructions = [
        part.content for message in messages for part in message.parts if isinstance(part, SystemPromptPart)
    ] + [getattr(message, "instructions", None) for message in messages[:1]]
    tools = [
        (tool.name, tool.description, tool.parameters_json_schema)
        for tool in (*parameters.function_tools, *parameters.output_tools)
    ]
    form = parameters.output_object and parameters.output_object.json_schema
    return fingerprint(instructions, tools, form)


def _listed_cost(result: EmbeddingResult) -> float | None:
    try:
        return float(result.cost().total_price)
    except (LookupError, ValueError, AssertionError):
        return None
