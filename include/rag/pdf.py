"""The text of a PDF, as Markdown with a heading for each page."""

from __future__ import annotations

import io
import logging

from pypdf import PdfReader

from include.common.text import clean_text
from include.rag.bounded import UnreadableDocument
from include.rag.formats import MAX_CHARACTERS, Parsed
from include.rag.titles import own_title, title_of

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns about every small flaw that it repairs


def read_pdf(data: bytes) -> Parsed:
    """Read the text of the pages; note each page that cannot be read, and those that hold only pictures.

    :raises UnreadableDocument: no page can be read: it asks for a password, is broken, or is a scan.
    """
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):  # most that are encrypted open without a password
        raise UnreadableDocument("is protected by a password")
    pages, broken, pictures, characters = [], [], [], 0
    for number in range(1, len(reader.pages) + 1):
        try:
            page = reader.pages[number - 1]
            text = clean_text(page.extract_text()).strip()
            if not text and page.images.keys():
                pictures.append(number)
        except Exception as error:  # pypdf raises all kinds of errors on a broken page
            broken.append(f"page {number} cannot be read ({type(error).__name__}: {error})")
            continue
        if text:
            pages.append(f"## Page {number}\n\n{text}")
            characters += len(text)
        if characters > MAX_CHARACTERS:
            break
    if not pages and broken:
        raise UnreadableDocument(f"is broken: {'; '.join(broken)}")
    if not pages and pictures:
        raise UnreadableDocument(
            "is a scan: its pages are pictures, with no text layer. Run a text recognition over it, such as OCRmyPDF"
        )
    if not pages:
        return Parsed("", "")
    if pictures:
        broken.append(f"pages with pictures and no text: {', '.join(map(str, pictures))}")
    title = own_title(_title(reader)) or title_of(pages[0].split("\n", 2)[2])
    return Parsed(title, "\n\n".join([f"# {title}", *pages]), broken)


def _title(reader: PdfReader) -> str:
    try:
        return clean_text(str((reader.metadata and reader.metadata.title) or ""))
    except Exception:  # a broken title counts as none
        return ""
