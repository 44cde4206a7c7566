"""A batch's rows, and the work of its tasks without Airflow. Nothing of the project is imported with this module."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

FILE = "rows.csv"


def write_rows(path: Path, number: int) -> None:
    """Write a file of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text\n" + "".join(f"review {n}\n" for n in range(number)))


def labels() -> type:
    """Return what the model is asked for."""
    from include.ai import BaseModel

    class Labels(BaseModel):
        sentiment: Literal["positive", "negative", "neutral"]

    return Labels


def answer_rows() -> None:
    """Answer the rows of FILE on the storage, 64 at once."""
    from include.batch.answering import Answering
    from include.batch.chunks import Chunk, write_chunks
    from include.batch.rows import read_rows
    from include.common.storage import storage_path

    folder = storage_path("memory")
    chunks = list(write_chunks(read_rows(storage_path(FILE), "text", None), "", folder, 1))
    work = Answering(
        [Chunk(folder / name) for name, _ in chunks],
        sum(rows for _, rows in chunks),
        system_prompt="Label.",
        output_type=labels(),
        at_once=64,
        budget_usd=None,
    )
    asyncio.run(work.run())
