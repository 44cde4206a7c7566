"""Text from outside as Markdown, which its readers see rendered."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_CELL = 200

_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "\n"})
_SIGNS = re.compile(r"[\\`*_\[\]|~]")


def as_markdown_text(text: object) -> str:
    """Return a text, such as a model's answer, as Markdown that shows its exact characters, line by line.

    Nothing in it becomes an image (which calls a server when shown), link, HTML, heading, list, table or code. An
    address in it stays visible; some viewers make it clickable.
    """
    text = _SIGNS.sub(r"\\\g<0>", str(text).replace("\r\n", "\n").translate(_HTML))
    lines = (line.strip(" \t") for line in text.split("\n"))
    return "\n".join(re.sub(r"^(\d{1,9})(?=[.)])|^(?=[#+=-])", r"\1\\", line) for line in lines)


def as_markdown_line(text: object) -> str:
    """Return a text as `as_markdown_text` does, in one line, as for a heading, a list or a table."""
    return as_markdown_text(" ".join(str(text).split()))


def as_markdown_quote(text: object) -> str:
    """Return a text as `as_markdown_text` does, as a quotation."""
    return "\n".join(f"> {line}" for line in as_markdown_text(text).split("\n"))


def as_markdown_cell(text: object) -> str:
    """Return a text as `as_markdown_line` does, cut to LONGEST_CELL characters, for a table."""
    line = " ".join(str(text).split())
    return as_markdown_line(line if len(line) <= LONGEST_CELL else f"{line[:LONGEST_CELL]} ...")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table. Its cells are Markdown: see `as_markdown_cell`."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))
