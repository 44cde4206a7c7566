"""The check of a batch's input file, with the provider's codes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .reading import LARGEST_BODY

ENDPOINT = "/v1/chat/completions"
MOST_REQUESTS = 50_000
LARGEST_INPUT = 200_000_000
_PROBLEMS_NAMED = 10


class Problem(NamedTuple):
    """What is wrong with a line; None: with the whole file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def as_openai(self) -> dict[str, Any]:
        """As a batch shows it."""
        return self._asdict()


def requests(content: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number and request of each line; None for one that is no JSON object."""
    with content.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    request = json.loads(line) if len(line) <= LARGEST_BODY else None
                except (ValueError, RecursionError):
                    request = None
                yield number, request if isinstance(request, dict) else None


def check(content: Path) -> tuple[int, list[Problem]]:
    """How many requests the file has, and what is wrong with it, at most 10 problems."""
    if content.stat().st_size > LARGEST_INPUT:
        return 0, [Problem("file_too_large", f"The input file is larger than {LARGEST_INPUT} bytes.")]
    problems: list[Problem] = []
    seen: set[str] = set()
    model: str | None = None
    total = 0
    for line, request in requests(content):
        total += 1
        problem = _problem(line, request, seen, model)
        if problem:
            problems.append(problem)
        elif request:
            seen.add(request["custom_id"])
            model = request["body"]["model"]
        if total > MOST_REQUESTS:
            problems = [Problem("too_many_requests", f"The input file has more than {MOST_REQUESTS} requests.")]
        if total > MOST_REQUESTS or len(problems) == _PROBLEMS_NAMED:
            break
    if not total:
        problems.append(Problem("empty_file", "The input file is empty."))
    return total, problems


def _problem(line: int, request: dict[str, Any] | None, seen: set[str], model: str | None) -> Problem | None:
    if request is None:
        return Problem("invalid_json_line", "This line is not parseable as a JSON object.", line)
    body = request.get("body")
    missing = [name for name in ("custom_id", "method", "url") if not isinstance(request.get(name), str)]
    if missing or not isinstance(body, dict):
        name = missing[0] if missing else "body"
        return Problem("missing_required_parameter", f"Missing required parameter: '{name}'.", line, name)
    if request["custom_id"] in seen:
        return Problem("duplicate_custom_id", "The custom_id was used before in this file.", line, "custom_id")
    if request["method"] != "POST":
        return Problem("invalid_method", "The method must be POST.", line, "method")
    if request["url"] != ENDPOINT:
        return Problem("invalid_url", "The url must be that of the batch's endpoint.", line, "url")
    if not isinstance(body.get("model"), str):
        return Problem("missing_required_parameter", "Missing required parameter: 'model'.", line, "body.model")
    if model not in (None, body["model"]):
        return Problem("mismatched_model", "All requests must be for the same model.", line, "body.model")
    if body.get("stream"):
        return Problem("invalid_request", "Answers of a batch can't be streamed.", line, "body.stream")
    return None
