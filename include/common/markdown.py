"""Text from outside in Markdown, which is rendered where its readers are."""

from __future__ import annotations

import re

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
