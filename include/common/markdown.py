"""Text from outside in Markdown, which is rendered where its readers are."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_CELL = 200

_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "\n"})
_SIGNS = re.compile(r"[\\`*_\[\]|~]")


def as_markdown_text(text: object) -> str:
    """Return a text, such as a model's answer, as Markdown that shows its very characters, in its lines.

    It becomes no picture (which calls a server when it is shown), link, HTML, heading, list, table or code. An address
    in it stays to be seen; some viewers let a reader click it.
    """
    text = _SIGNS.sub(r"\\\g<0>", str(text).replace("\r\n", "\n").translate(_HTML))
    lines = (line.strip(" \t") for line in text.split("\n"))
    return "\n".join(re.sub(r"^(\d{1,9})(?=[.)])|^(?=[#+=-])", r"\1\\", line) for line in lines)


def as_markdown_line(text: object) -> str:
    """Do as `as_markdown_text` with a text in one line, as in a heading, a list or a table."""
    return as_markdown_text(" ".join(str(text).split()))


def as_markdown_quote(text: object) -> str:
    """Do as `as_markdown_text` with a text that is shown as a quotation."""
    return "\n".join(f"> {line}" for line in as_markdown_text(text).split("\n"))


def as_markdown_cell(text: object) -> str:
    """Do as `as_markdown_line` with a text in a table, of which LONGEST_CELL characters are shown."""
    line = " ".join(str(text).split())
    return as_markdown_line(line if len(line) <= LONGEST_CELL else f"{line[:LONGEST_CELL]} ...")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table. Its cells are Markdown: see `as_markdown_cell`."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))
