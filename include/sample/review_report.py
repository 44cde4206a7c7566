"""The report of the batch inference DAG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

SENTIMENTS = ("positive", "negative", "neutral")


def summarize_reviews(rows: Sequence[dict[str, str]], answers: Sequence[dict[str, str] | None]) -> dict[str, Any]:
    """Count the sentiments, and compare them with the labels of the rows that have one.

    :param rows: `review_id`, `review` and perhaps `sentiment` (the label).
    :param answers: for each row the model's `sentiment` and `summary`, or None where it failed.
    """
    counts = Counter(answer["sentiment"] for answer in answers if answer)
    failed = [row["review_id"] for row, answer in zip(rows, answers, strict=True) if not answer]
    labelled = [
        (row["sentiment"], answer["sentiment"])
        for row, answer in zip(rows, answers, strict=True)
        if answer and "sentiment" in row
    ]
    right = sum(label == sentiment for label, sentiment in labelled)
    summary = ", ".join(f"{counts[sentiment]} {sentiment}" for sentiment in SENTIMENTS)
    if labelled:
        summary += f"; agrees with {right} of {len(labelled)} labels ({100 * right / len(labelled):.0f} %)"
    if failed:
        summary += f"; failed: {', '.join(failed)}"
    return {
        "counts": {sentiment: counts[sentiment] for sentiment in SENTIMENTS},
        "accuracy": right / len(labelled) if labelled else None,
        "failed": failed,
        "rows": [{"review_id": row["review_id"], **(answer or {})} for row, answer in zip(rows, answers, strict=True)],
        "summary": summary,
    }
