"""Documents of formats that are not text, written for tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def pdf(
    *pages: str,
    title: str = "",
    password: str = "",
    owner_password: str = "",
    algorithm: str = "RC4-128",
    pictures: Sequence[int] = (),
    broken: Sequence[int] = (),
) -> bytes:
    """A PDF with these lines of text on its pages.

    :param pictures: numbers of pages with a picture, and
    :param broken: those whose contents cannot be decoded.
    """
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject, NumberObject

    def names(**values: Any) -> DictionaryObject:
        return DictionaryObject({NameObject(f"/{name}"): value for name, value in values.items()})

    writer = PdfWriter()
    font = names(Type=NameObject("/Font"), Subtype=NameObject("/Type1"), BaseFont=NameObject("/Helvetica"))
    for number, text in enumerate(pages, 1):
        page = writer.add_blank_page(width=595, height=842)
        resources = names(Font=names(F1=font))
        if number in pictures:
            picture = DecodedStreamObject()
            picture.set_data(b"\xff")
            picture.update(names(Type=NameObject("/XObject"), Subtype=NameObject("/Image"), Width=NumberObject(1)))
            picture.update(names(Height=NumberObject(1), BitsPerComponent=NumberObject(8)))
            picture.update(names(ColorSpace=NameObject("/DeviceGray")))
            resources.update(names(XObject=names(Im1=writer._add_object(picture))))
        page[NameObject("/Resources")] = resources
        content = DecodedStreamObject()
        lines = " T* ".join(f"({line}) Tj" for line in text.split("\n"))
        content.set_data(f"BT /F1 12 Tf 14 TL 50 780 Td {lines} ET".encode("latin-1"))
        if number in broken:
            content[NameObject("/Filter")] = NameObject("/NoSuchFilter")
        page[NameObject("/Contents")] = writer._add_object(content)
    if title:
        writer.add_metadata({"/Title": title})
    if password or owner_password:
        writer.encrypt(password, owner_password or None, algorithm=algorithm)
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def pdf_that_means(text: str) -> bytes:
    """A PDF with the letters A, B, C..., whose font says that they stand for the UTF-16 units of the text."""
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import DecodedStreamObject, NameObject

    units = text.encode("utf-16-be", "surrogatepass").hex(" ", 2).split()
    letters = [chr(ord("A") + n) for n in range(len(units))]
    table = "\n".join(f"<{ord(letter):02x}> <{unit}>" for letter, unit in zip(letters, units, strict=True))
    cmap = DecodedStreamObject()
    cmap.set_data(
        "begincmap 1 begincodespacerange <00> <ff> endcodespacerange "
        f"{len(units)} beginbfchar\n{table}\nendbfchar endcmap".encode()
    )
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("".join(letters)))))
    font = writer.pages[0]["/Resources"]["/Font"]["/F1"].get_object()
    font[NameObject("/ToUnicode")] = writer._add_object(cmap)
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def docx(*parts: tuple[str, str] | list[list[str]], title: str = "") -> bytes:
    """A Word file of paragraphs (style and text) and tables (rows of cells)."""
    styles = sorted({part[0] for part in parts if isinstance(part, tuple)})
    ids = {style: style.replace(" ", "") for style in styles}
    declared = "".join(
        f'<w:style w:type="paragraph" w:styleId="{ids[style]}"><w:name w:val="{style}"/></w:style>' for style in styles
    )

    def paragraph(text: str, style: str = "") -> str:
        named = f'<w:pPr><w:pStyle w:val="{ids[style]}"/></w:pPr>' if style else ""
        return f"<w:p>{named}<w:r><w:t>{escape(text)}</w:t></w:r></w:p>"

    body = ""
    for part in parts:
        if isinstance(part, tuple):
            body += paragraph(part[1], part[0])
        else:
            rows = ["".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in part]
            body += f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in rows)}</w:tbl>"
    document_type = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    files = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{document_type}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{RELATIONS}"><Relationship Id="r1" Type="{OFFICE}/officeDocument" '
        'Target="word/document.xml"/></Relationships>',
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{RELATIONS}"><Relationship Id="r1" '
        f'Type="{OFFICE}/styles" Target="styles.xml"/></Relationships>',
        "word/styles.xml": f'<w:styles xmlns:w="{WORD}">{declared}</w:styles>',
        "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
        "docProps/core.xml": '<p:coreProperties xmlns:p="http://schemas.openxmlformats.org/package/2006/metadata/'
        f'core-properties"><d:title xmlns:d="http://purl.org/dc/elements/1.1/">{title}</d:title></p:coreProperties>',
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file.getvalue()


def pptx(*slides: tuple[str, str], title: str = "", notes: str = "", table: Sequence[Sequence[str]] = ()) -> bytes:
    """A PowerPoint file of slides with a title and a text; notes and a table are on the last one."""
    from pptx import Presentation

    show = Presentation()
    show.core_properties.title = title
    for name, text in slides:
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = name, text
    if notes:
        slide.notes_slide.notes_text_frame.text = notes
    if table:
        cells = slide.shapes.add_table(len(table), len(table[0]), 0, 5_000_000, 5_000_000, 1_000_000).table
        for y, row in enumerate(table):
            for x, value in enumerate(row):
                cells.cell(y, x).text = value
    file = io.BytesIO()
    show.save(file)
    return file.getvalue()


def xlsx(sheets: dict[str, list[list[Any]]], title: str = "", hidden: Sequence[str] = ()) -> bytes:
    """An Excel file of sheets, as rows of values."""
    from xlsxwriter import Workbook

    file = io.BytesIO()
    book = Workbook(file, {"in_memory": True, "default_date_format": "yyyy-mm-dd", "remove_timezone": True})
    book.set_properties({"title": title})
    for name, rows in sheets.items():
        sheet = book.add_worksheet(name)
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                sheet.write(y, x, value)
        if name in hidden:
            sheet.hide()
    book.close()
    return file.getvalue()
