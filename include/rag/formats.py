"""Read documents as text, each format with a parser from PyPI.

All but plain text become Markdown, which is cut along headings; a PDF's headings are its pages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from include.common.text import clean_text
from include.rag import bounded
from include.rag.bounded import UnreadableDocument
from include.rag.titles import Heading, headings, split_front_matter, title_of

MAX_CHARACTERS = 2_000_000  # more than any help page: a PDF can hold far more text than its size says

TEXT = "text"


class Parsed(NamedTuple):
    """A document's title, its text, and notes on what could not be read, such as single pages of a PDF."""

    title: str
    text: str
    notes: Sequence[str] = ()


# By suffix: the format, by which searches can be filtered, and the function that reads it.
FORMATS: dict[str, tuple[str, str]] = {
    ".md": ("markdown", "include.rag.formats.read_markdown"),
    ".markdown": ("markdown", "include.rag.formats.read_markdown"),
    ".txt": (TEXT, "include.rag.formats.read_plain"),
    ".html": ("html", "include.rag.web_pages.read_page"),
    ".htm": ("html", "include.rag.web_pages.read_page"),
    ".xhtml": ("html", "include.rag.web_pages.read_page"),
    ".pdf": ("pdf", "include.rag.pdf.read_pdf"),
}
try:
    from include.rag.office import OFFICE_FORMATS
except ImportError:
    pass
else:
    FORMATS |= OFFICE_FORMATS


def read_text(data: bytes, name: str) -> tuple[str, Parsed]:
    """Read the content of a file as Markdown, or as plain text where the format is `TEXT`.

    :param name: that of the file; its suffix gives the format.
    :return: the format, and what was read.
    :raises UnreadableDocument: its type is unknown, it is empty, wrongly encoded or broken, or holds too much text.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in FORMATS:
        raise UnreadableDocument(f"{name} has a type that is not read. Those that are: {', '.join(FORMATS)}.")
    format_name, parser = FORMATS[suffix]
    title, text, notes = bounded.call(name, parser, data)
    text = _tidy(text)
    if not text:
        raise UnreadableDocument(f"{name} is empty, or holds no text.")
    if len(text) > MAX_CHARACTERS:
        raise UnreadableDocument(f"{name} holds more than {MAX_CHARACTERS:,} characters.")
    return format_name, Parsed(_tidy(title), text, [clean_text(note) for note in notes])


def cut(text: str, format_name: str, characters: int, overlap: int) -> tuple[list[tuple[int, str]], list[Heading]]:
    """Cut a text along its structure into overlapping pieces of at most `characters`.

    :return: the pieces, each with its start, and the text's headings.
    """
    splitter = TextSplitter if format_name == TEXT else MarkdownSplitter
    pieces = splitter(characters, overlap=overlap).chunk_indices(text)
    return list(pieces), [] if format_name == TEXT else headings(text)


def read_plain(data: bytes) -> Parsed:
    """Read plain text, which has no headings."""
    text = _decode(data)
    return Parsed(title_of(text), text)


def read_markdown(data: bytes) -> Parsed:
    """Read a Markdown file without its front matter."""
    title, text = split_front_matter(_decode(data))
    return Parsed(title or title_of(text, headings(text)), text)


def _decode(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableDocument(f"is wrongly encoded (expected is UTF-8): {error}") from None
    if "\0" in text:
        raise UnreadableDocument("is not text: it contains null characters.")
    return _line_ends(text)


def _line_ends(text: str) -> str:
    return re.sub(r"\r\n?", "\n", text)


def _tidy(text: str) -> str:
    return _line_ends(clean_text(text)).strip()
