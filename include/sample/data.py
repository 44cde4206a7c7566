"""Readers of the sample data. README.md beside this file says what each file holds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from include.sample.reviews import REVIEWS

FOLDER = Path(__file__).parent


def reviews() -> list[dict[str, str]]:
    """Return 200 reviews: review_id, review, sentiment (positive, negative, neutral)."""
    with REVIEWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tickets() -> list[dict[str, str]]:
    """Return 40 support tickets: ticket_id, customer, text, category, urgency."""
    return _json_lines("tickets.jsonl")


def questions() -> list[dict[str, str]]:
    """Return 30 questions to the knowledge base: question, document (with the answer)."""
    return _json_lines("questions.jsonl")


def evaluation_questions() -> list[dict[str, Any]]:
    """Return 66 questions to the knowledge base: those of `questions` and more; `document` is None if none answers."""
    return [*_json_lines("questions.jsonl"), *_json_lines("more_questions.jsonl")]


def companies() -> dict[str, dict[str, Any]]:
    """Return six fictional companies by name: financials by fiscal year, and dated market facts."""
    with (FOLDER / "companies.json").open(encoding="utf-8") as file:
        return {company["name"]: company for company in json.load(file)["companies"]}


def _json_lines(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
