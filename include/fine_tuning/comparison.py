"""Compare models on the same examples: their answers and scores, with a table and a chart."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from statistics import mean
from typing import TYPE_CHECKING, Any

from include.common.charts import bar_chart
from include.common.markdown import as_markdown_cell, table
from include.common.results import publish, report, run_folder
from include.common.storage import read_artifact, storage_path, write_artifact
from include.common.text import clean_text
from include.fine_tuning.examples import Example, estimate_tokens
from include.jobs.service import OpenAIService, task_error

try:
    from include.fine_tuning import spending
except ImportError:  # a copied pattern may lack it: then there are neither budgets nor a ledger
    spending = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# Calls in flight, per task.
AT_ONCE = 4
# By how many tokens an answer may exceed the longest expected one: a model that rambles is cut off, and scores low.
SPARE_TOKENS = 8


async def answer_all(service: OpenAIService, model: str, examples: Sequence[Example]) -> list[str]:
    """Return the model's answer to the question of each example.

    Each answer is at once stored on the project's storage, by model and question: no retry and no other run pays for it
    again.
    """
    turn = asyncio.Semaphore(AT_ONCE)
    longest = max(estimate_tokens(example.messages[-1:]) for example in examples) + SPARE_TOKENS
    async with service.client() as client:

        async def answer(example: Example) -> str:
            async with turn:
                return await _answer(service, client, model, example.question, longest)

        return await asyncio.gather(*map(answer, examples))


async def _answer(
    service: OpenAIService, client: AsyncOpenAI, model: str, question: list[dict[str, str]], longest: int
) -> str:
    asked = json.dumps([service.public_url, model, question, longest])
    path = storage_path("fine_tuning", "answers", f"{hashlib.sha256(asked.encode()).hexdigest()}.json")
    with suppress(FileNotFoundError):
        return str(json.loads(read_artifact(path))["answer"])
    messages: Any = question
    if spending:
        spending.check_call(service, model)
    started = time.monotonic()
    try:
        reply = await client.chat.completions.create(
            model=model, messages=messages, max_completion_tokens=longest, timeout=120
        )
    except Exception as error:
        raise task_error(service, f"asking the model {model!r}", error) from None
    if spending:
        spending.count_call(service, model, reply, time.monotonic() - started)
    text = clean_text(reply.choices[0].message.content or "").strip()
    write_artifact(path, json.dumps({"model": model, "answer": text}, ensure_ascii=False))
    return text


def word_f1(answer: str, expected: str) -> float:
    """Return the F1 score of the words of the two, from 0 to 1; case and order do not matter."""
    said, wanted = (Counter(re.findall(r"\w+", text.casefold())) for text in (answer, expected))
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0


def scores(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Return `exact`, the share of answers that equal the expected one, and `words`, the mean of their `word_f1`."""
    pairs = list(zip(answers, expected, strict=True))
    return {
        "exact": mean(_normal(answer) == _normal(wanted) for answer, wanted in pairs),
        "words": mean(word_f1(answer, wanted) for answer, wanted in pairs),
    }


def write_comparison(examples: Sequence[Example], answers: dict[str, Sequence[str]]) -> dict[str, Any]:
    """Score every model's answers, write a table and a chart of them, and return the scores and where the files are."""
    expected = [example.answer for example in examples]
    by_model = {model: scores(given, expected) for model, given in answers.items()}
    summary = "".join(f"- {model}: exact {s['exact']:.2f}, words {s['words']:.2f}\n" for model, s in by_model.items())
    title = f"{len(answers)} models on {len(examples)} validation examples"
    publish("comparison.md", report(title, summary, comparison_table(examples, answers)))
    publish("scores.svg", bar_chart(f"{len(examples)} validation examples", "score, 0 to 1", by_model))
    if spending:
        spending.record_scores(examples, by_model)
    line = ", ".join(f"{model} {s['words']:.2f}" for model, s in by_model.items())
    return {"scores": by_model, "artifacts": str(run_folder()), "result": f"score on {len(examples)} examples: {line}"}


def comparison_table(examples: Sequence[Example], answers: dict[str, Sequence[str]]) -> str:
    """Return each example with what every model answered, as a Markdown table."""
    rows = [
        [as_markdown_cell(text) for text in (example.question[-1]["content"], example.answer, *given)]
        for example, *given in zip(examples, *answers.values(), strict=True)
    ]
    return table(["question", "expected", *answers], rows)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
