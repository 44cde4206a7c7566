"""What stored answers add to a call on this disk, and to the memory of a task with many calls.

    python -m benchmarks.reuse

It takes about a minute on a quiet machine. The task's log line for each answer is not included.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import psutil

CALLS = 2_000
WARM_UP, MORE_CALLS = 5_000, 10_000
TEXT = "The tracker loses its position in the garage, and the app then shows the van in the sea. " * 8


async def main() -> None:
    from pydantic_ai.messages import ModelRequest, ModelResponse, SystemPromptPart, ToolCallPart, UserPromptPart
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.tools import ToolDefinition

    from include.ai import attempt, reuse
    from include.ai.connection import ModelSource
    from include.ai.layers import LayeredModel

    class Answering(LayeredModel):
        """A model that answers at once."""

        source = ModelSource("conn", "openai-chat:model", {}, {})

        async def request(self, *_: Any) -> ModelResponse:
            response = ModelResponse([ToolCallPart("final_result", {"sentiment": "positive", "topic": "device"}, "id")])
            await attempt.keep(self.source, response)
            return response

    schema = {"type": "object", "properties": {"sentiment": {"type": "string"}, "topic": {"type": "string"}}}
    form = ModelRequestParameters(
        output_mode="tool", output_tools=[ToolDefinition(name="final_result", parameters_json_schema=schema)]
    )
    bare = Answering("conn")
    reuse.spending = None  # type: ignore[assignment]

    def begin(attempt_id: str, try_number: int = 1) -> LayeredModel:
        """Begin an attempt of the task."""
        ti = SimpleNamespace(
            id=attempt_id, dag_id="d", run_id="r", task_id="t", map_index=-1, max_tries=3, try_number=try_number
        )
        begun = attempt.TaskAttempt({"ti": ti, "dag_run": SimpleNamespace(start_date=None)})
        reuse.this_attempt = lambda: begun
        return reuse.ReusingModel(bare, "retries")

    async def ask(model: LayeredModel, number: int) -> None:
        prompt = [SystemPromptPart("Classify a review."), UserPromptPart(f"{number} {TEXT}")]
        await model.request([ModelRequest(prompt)], None, form)

    async def time_ms(model: LayeredModel) -> float:
        started = perf_counter()
        for number in range(CALLS):
            await ask(model, number)
        return (perf_counter() - started) / CALLS * 1000

    logging.getLogger("include.ai.usage").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENAI_STORAGE"] = folder
        without = await time_ms(bare)
        print(f"a call that is stored: {await time_ms(begin('one')) - without:.2f} ms more")
        print(f"a call that is answered from the storage: {await time_ms(begin('two', 2)) - without:.2f} ms")
        memory, last, model = psutil.Process(), 0, begin("three")
        for number in range(WARM_UP + MORE_CALLS):
            if number == WARM_UP:
                last = memory.memory_info().rss
            await ask(model, CALLS + number)
        grown = (memory.memory_info().rss - last) / MORE_CALLS
        print(f"memory in {MORE_CALLS:,} calls that are stored, after {WARM_UP:,}: {grown:.0f} bytes more for each")


if __name__ == "__main__":
    asyncio.run(main())
