"""Markdown tables of text from outside."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_CELL = 200


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table. Text in it stays in its cell, as text."""
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(text: str) -> str:
    flat = " ".join(text.split())
    flat = flat if len(flat) <= LONGEST_CELL else f"{flat[:LONGEST_CELL]} ..."
    for sign, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\["), ("!", "\\!")):
        flat = flat.replace(sign, escaped)
    return flat
