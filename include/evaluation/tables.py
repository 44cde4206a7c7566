"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from include.common.markdown import as_markdown_line

LONGEST_CELL = 200


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, whose cells are Markdown: see `cell`."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def cell(text: object) -> str:
    """Return text from outside as a cell, cut to a length that can be read there."""
    flat = " ".join(str(text).split())
    return as_markdown_line(flat if len(flat) <= LONGEST_CELL else f"{flat[:LONGEST_CELL]} ...")
