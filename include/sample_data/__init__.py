"""Readers of the sample data. README.md beside this file says what each file holds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def reviews() -> list[dict[str, str]]:
    """200 reviews: review_id, review, sentiment (positive, negative, neutral)."""
    with (FOLDER / "reviews.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def companies() -> dict[str, dict[str, Any]]:
    """Six fictional companies by name: financials by fiscal year, and dated market facts."""
    with (FOLDER / "companies.json").open(encoding="utf-8") as file:
        return {company["name"]: company for company in json.load(file)["companies"]}
