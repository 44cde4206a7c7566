"""How well the local model sorts texts, next to the same model left alone under a grammar.

    python -m benchmarks.model_quality [--rows 60] [--skip 0]

Prints accuracy, label counts and seconds per call for the sentiment of reviews and the severity of incidents,
once through the server as a client sees it and once greedily under a JSON grammar. It takes about a minute.
"""

import argparse
import csv
import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from local.model_server import serve
from local.model_server.engine import Engine

SAMPLES = Path(__file__).parents[1] / "include" / "sample"


class Question(NamedTuple):
    """What is asked about a text: the prompt, and the name and the possible values of the answer's only field."""

    prompt: str
    field: str
    labels: list[str]


SENTIMENT = Question("Classify the sentiment of a customer review.", "sentiment", ["positive", "negative", "neutral"])
SEVERITY = Question(
    """Decide how to handle an incident of a fleet-tracking platform.
handle_critical: danger to people, the whole system is down, or data is being lost.
handle_standard: something is broken and needs attention, but work goes on.
handle_low: minor, cosmetic, or only a question.""",
    "response",
    ["handle_critical", "handle_standard", "handle_low"],
)


def through_the_server(base_url: str, question: Question) -> Callable[[str], str]:
    """A classifier that asks as pydantic-ai does: with one output tool."""
    import openai

    client = openai.OpenAI(base_url=base_url, api_key="none")
    properties = {question.field: {"enum": question.labels, "type": "string"}}
    schema = {"type": "object", "properties": properties, "required": [question.field]}
    tool: Any = {"type": "function", "function": {"name": "final_result", "parameters": schema}}

    def classify(text: str) -> str:
        answer: Any = client.chat.completions.create(
            model="smollm2-135m-instruct",
            messages=[{"role": "system", "content": question.prompt}, {"role": "user", "content": text}],
            tools=[tool],
            tool_choice="required",
        )
        return str(json.loads(answer.choices[0].message.tool_calls[0].function.arguments)[question.field])

    return classify


def left_alone(engine: Engine, question: Question) -> Callable[[str], str]:
    """A classifier that takes the likeliest label under a grammar."""
    grammar = "root ::= " + " | ".join(f'"{label}"' for label in question.labels)

    def classify(text: str) -> str:
        turns = f"<|im_start|>system\n{question.prompt}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
        start = f'<|im_start|>assistant\n{{"{question.field}": "'
        return engine.complete(turns + start, 12, grammar=grammar, temperature=0).text

    return classify


def report(name: str, classify: Callable[[str], str], data: list[tuple[str, str]]) -> None:
    """Print a line of results; the first call only warms up."""
    classify(data[0][0])
    start = time.perf_counter()
    answers = [classify(text) for text, _ in data]
    seconds = (time.perf_counter() - start) / len(data)
    right = sum(answer == label for answer, (_, label) in zip(answers, data, strict=True)) / len(data)
    most = max(Counter(label for _, label in data).values()) / len(data)
    counts = dict(sorted(Counter(answers).items()))
    print(f"{name:22} accuracy {right:.2f} (majority {most:.2f})  {seconds:.2f} s  {counts}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_quality", description=__doc__)
    parser.add_argument("--rows", type=int, default=60, help="reviews to read (default: %(default)s)")
    parser.add_argument("--skip", type=int, default=0, help="reviews to leave out at the start (default: %(default)s)")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.WARNING)
    with (SAMPLES / "reviews.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[options.skip : options.skip + options.rows]
    reviews = [(row["review"], row["sentiment"]) for row in rows]
    lines = (SAMPLES / "incidents.jsonl").read_text(encoding="utf-8").splitlines()
    incidents = [(row["text"], f"handle_{row['severity']}") for row in map(json.loads, lines)]
    with serve() as base_url:
        report("reviews, server", through_the_server(base_url, SENTIMENT), reviews)
        report("incidents, server", through_the_server(base_url, SEVERITY), incidents)
    engine = Engine()
    report("reviews, alone", left_alone(engine, SENTIMENT), reviews)
    report("incidents, alone", left_alone(engine, SEVERITY), incidents)


if __name__ == "__main__":
    main()
