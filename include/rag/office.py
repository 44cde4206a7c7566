"""Read office files and tables as Markdown. Optional: without this module, such files are not read.

Each row of a table becomes a paragraph with the label before each value, so that no chunk of a long table lacks its
header.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, time
from typing import Any
from xml.etree import ElementTree

from include.rag.bounded import UnreadableDocument
from include.rag.formats import Parsed
from include.rag.titles import headings, own_title, title_of

# By suffix: the format, and the function that reads it.
OFFICE_FORMATS = {
    ".docx": ("word", "include.rag.office.read_word"),
    ".pptx": ("powerpoint", "include.rag.office.read_powerpoint"),
    ".xlsx": ("excel", "include.rag.office.read_excel"),
    ".csv": ("csv", "include.rag.office.read_csv"),
}


@contextmanager
def _needs(package: str) -> Iterator[None]:
    """Name the package, which is optional, if it is missing."""
    try:
        yield
    except ImportError:
        raise UnreadableDocument(
            f"needs the package {package}, which is not installed: see Office documents in requirements.txt"
        ) from None


@_needs("mammoth")
def read_word(data: bytes) -> Parsed:
    """Read headings, paragraphs, lists, tables and notes."""
    import mammoth

    from include.rag.web_pages import page_as_markdown

    page = mammoth.convert_to_html(
        io.BytesIO(data),
        style_map="p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => p:fresh",
        convert_image=mammoth.images.img_element(lambda image: {"src": ""}),
        external_file_access=False,
    ).value
    return page_as_markdown(page, "" if "<h1>" in page else _title(data))


@_needs("python-pptx")
def read_powerpoint(data: bytes) -> Parsed:
    """Read each slide: its title as heading, its texts and tables from top to bottom, and its notes."""
    from pptx import Presentation

    slides, first = [], ""
    for number, slide in enumerate(Presentation(io.BytesIO(data)).slides, 1):
        head = slide.shapes.title
        name = " ".join(head.text_frame.text.split()) if head is not None else ""
        first = first or name
        parts = [text for shape in _shapes(slide.shapes) if shape != head for text in _shape_texts(shape)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            parts.append(slide.notes_slide.notes_text_frame.text)
        if name or any(part.strip() for part in parts):
            slides.append("\n\n".join([f"## {name or f'Slide {number}'}", *(part for part in parts if part.strip())]))
    text = "\n\n".join(slides)
    title = _title(data) or first or title_of(text, headings(text))
    return Parsed(title, f"# {title}\n\n{text}" if text else "")


@_needs("python-calamine")
def read_excel(data: bytes) -> Parsed:
    """Read every visible sheet, with its name as heading."""
    from python_calamine import CalamineWorkbook, SheetVisibleEnum

    book = CalamineWorkbook.from_filelike(io.BytesIO(data))
    sheets = []
    for sheet in book.sheets_metadata:
        if sheet.visible == SheetVisibleEnum.Visible:
            found = book.get_sheet_by_name(sheet.name)
            rows = found.iter_rows() if found.height else []
            if paragraphs := list(_rows([_cell(value) for value in row] for row in rows)):
                sheets.append((sheet.name, "\n\n".join(paragraphs)))
    names = [own_title(name) for name, _ in sheets if own_title(name)]
    title = _title(data) or (names[0] if names else "") or (title_of(sheets[0][1]) if sheets else "")
    return Parsed(
        title, "\n\n".join([f"# {title}", *(f"## {name}\n\n{text}" for name, text in sheets)]) if sheets else ""
    )


def read_csv(data: bytes) -> Parsed:
    """Read a table that is separated by commas, semicolons or tabs."""
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableDocument(f"is wrongly encoded (expected is UTF-8): {error}") from None
    header = next((line for line in text.split("\n") if line.strip()), "")
    separator = max(",;\t", key=header.count)
    csv.field_size_limit(len(data) + 1)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    paragraphs = list(_rows([" ".join(cell.split()) for cell in row] for row in rows))
    return Parsed(" ".join(header.split()), "\n\n".join(paragraphs))


def _rows(rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield a paragraph for each row that is not empty: its values, each after its label if there is a header."""
    header: list[str] | None = None
    for row in rows:
        filled = [cell for cell in row if cell]
        if header is None and len(filled) > 1:
            header = row if all(re.search(r"[^\W\d_]", cell) for cell in filled) else []
            if header:
                continue
        labels = [*(header or []), *[""] * len(row)]
        cells = [f"{label}: {cell}" if label else cell for label, cell in zip(labels, row, strict=False) if cell]
        if cells:
            yield "; ".join(cells)


def _cell(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    return " ".join(str(value).split())


def _shapes(shapes: Any) -> Iterator[Any]:
    """Yield shapes and those in groups, from top to bottom."""
    for shape in sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0)):
        if hasattr(shape, "shapes"):
            yield from _shapes(shape.shapes)
        else:
            yield shape


def _shape_texts(shape: Any) -> Iterator[str]:
    if shape.has_text_frame:
        yield "\n\n".join(paragraph.text for paragraph in shape.text_frame.paragraphs if paragraph.text.strip())
    elif getattr(shape, "has_table", False):
        yield from _rows([" ".join(cell.text.split()) for cell in row.cells] for row in shape.table.rows)


def _title(data: bytes) -> str:
    """Return the title in the file's properties; empty if there is none, or a program wrote it."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        if "docProps/core.xml" not in file.namelist():
            return ""
        properties = ElementTree.fromstring(file.read("docProps/core.xml"))  # noqa: S314 - expat refuses expansions
    return own_title(properties.findtext("{http://purl.org/dc/elements/1.1/}title"))
