"""Documents as text: Markdown, plain text, HTML and PDF, each by a parser from PyPI.

HTML and PDF become Markdown, so that all of them are cut along headings; a PDF's headings are its pages.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from include.common.text import clean_text

# More than any help page, and little enough for a worker's memory: a PDF can hold far more text than its size says.
MAX_BYTES = 20_000_000
MAX_CHARACTERS = 2_000_000

TEXT = "text"

# Parts of a web page that are not its text.
NOT_TEXT = ["script", "style", "noscript", "template", "svg", "nav", "header", "footer", "aside", "form", "iframe"]


class UnreadableDocument(ValueError):
    """A file that cannot be used. The message names it and says why."""


class FileText(NamedTuple):
    """A file's format, its text (Markdown, or plain text where the format is `TEXT`), and the SHA-256 of its bytes."""

    format: str
    text: str
    sha256: str


def read_text(path: Path, name: str) -> FileText:
    """Read a file once, so that its text and its checksum are of the same version.

    :param name: what the file is called in messages.
    :raises UnreadableDocument: it is of no known type, empty, too large, wrongly encoded or broken.
    """
    if path.suffix.lower() not in FORMATS:
        raise UnreadableDocument(f"{name} has a type that is not read. Those that are: {', '.join(FORMATS)}.")
    format_name, parse = FORMATS[path.suffix.lower()]
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UnreadableDocument(f"{name} is larger than {MAX_BYTES:,} bytes.")
        data = path.read_bytes()
        text = parse(data)
    except UnreadableDocument:
        raise
    except (UnicodeDecodeError, LookupError) as error:
        raise UnreadableDocument(f"{name} is wrongly encoded (expected is UTF-8): {error}") from error
    except OSError as error:
        raise UnreadableDocument(f"{name} cannot be read: {error.strerror}") from error
    except Exception as error:  # parsers raise all kinds of errors on a broken file
        raise UnreadableDocument(f"{name} is broken: {type(error).__name__}: {error}") from error
    if parse is _plain and "\0" in text:
        raise UnreadableDocument(f"{name} is not text: it contains null characters.")
    text = re.sub(r"\r\n?", "\n", clean_text(text)).strip()
    if not text:
        raise UnreadableDocument(f"{name} is empty, or holds no text.")
    if len(text) > MAX_CHARACTERS:
        raise UnreadableDocument(f"{name} holds more than {MAX_CHARACTERS:,} characters.")
    return FileText(format_name, text, hashlib.sha256(data).hexdigest())


def _plain(data: bytes) -> str:
    return data.decode("utf-8-sig")


def _html(data: bytes) -> str:
    from bs4 import BeautifulSoup
    from bs4.dammit import EncodingDetector
    from markdownify import MarkdownConverter

    encoding = EncodingDetector.find_declared_encoding(data, is_html=True) or "utf-8-sig"
    page = BeautifulSoup(data.decode(encoding), "html.parser")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for part in page(["head", *NOT_TEXT]):
        part.decompose()
    text = MarkdownConverter(heading_style="ATX", strip=["a", "img"]).convert_soup(page).strip()
    if text and title and not page.h1:
        return f"# {title}\n\n{text}"
    return str(text)


def _pdf(data: bytes) -> str:
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of each small flaw that it repairs
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted:
        raise ValueError("it is protected by a password")
    pages, characters = [], 0
    for number, page in enumerate(reader.pages, 1):
        if text := clean_text(page.extract_text()).strip():
            pages.append(f"## Page {number}\n\n{text}")
            characters += len(text)
            if characters > MAX_CHARACTERS:
                break
    if not pages:
        return ""
    title = str((reader.metadata and reader.metadata.title) or pages[0].split("\n")[2]).strip()
    return "\n\n".join([f"# {title}", *pages])


# By suffix: the format, as searches can be filtered by it, and what reads it.
FORMATS: dict[str, tuple[str, Callable[[bytes], str]]] = {
    ".md": ("markdown", _plain),
    ".txt": (TEXT, _plain),
    ".html": ("html", _html),
    ".htm": ("html", _html),
    ".pdf": ("pdf", _pdf),
}
