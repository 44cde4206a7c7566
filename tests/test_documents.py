"""`include.rag.documents`: reading the knowledge base, and cutting it into chunks."""

from __future__ import annotations

import json
import logging
import os
import re
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from hypothesis import given
from hypothesis import strategies as st

from include.rag import documents
from include.rag import formats as document_formats
from include.rag.chunks import split_document
from include.rag.documents import (
    CHUNK_CHARACTERS,
    Document,
    file_checksum,
    listed_documents,
    read_document,
)
from include.rag.formats import UnreadableDocument
from tests.document_files import pdf, pdf_that_means
from tests.stores import read_documents

pytestmark = pytest.mark.one_stack

ALL = read_documents()

PAGE = """<!doctype html><html><head><title>Kestrel: tyres</title><style>p {color: red}</style></head>
<body><nav>Home | Help</nav><h2>Winter tyres</h2><p>Fit them in <b>October</b>.</p>
<script>alert("ignore me")</script>
<table><tr><th>Size</th><th>Price</th></tr><tr><td>16"</td><td>80 EUR</td></tr></table>
<footer>Imprint</footer></body></html>"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty knowledge base."""
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", str(tmp_path))
    return tmp_path


def document(text: str, source: str = "a.md", format: str = "markdown") -> Document:
    return Document(source, "A", text, checksum="checksum of a", format=format)


def test_documents_come_by_name_with_their_first_heading_as_title(folder):
    (folder / "b.md").write_text("## Second *title*\n\nText.\n", encoding="utf-8")
    (folder / "a.md").write_text("\n# Gebühren & Preise\n\nText.\n", encoding="utf-8")
    (folder / "old").mkdir()
    (folder / "old" / "c.md").write_text("\ufeff# With a byte order mark\r\n\r\nText.", encoding="utf-8")
    (folder / ".gitkeep").write_text("")

    assert [(d.source, d.title) for d in read_documents()] == [
        ("a.md", "Gebühren & Preise"),
        ("b.md", "Second *title*"),
        ("old/c.md", "With a byte order mark"),
    ]
    assert read_document("old/c.md").text == "# With a byte order mark\n\nText."


def test_a_web_page_becomes_markdown_without_what_is_not_its_text(folder):
    (folder / "tyres.html").write_text(PAGE, encoding="utf-8")

    (page,) = read_documents()
    assert (page.title, page.format) == ("Kestrel: tyres", "html")
    assert page.text.startswith("# Kestrel: tyres\n\n## Winter tyres\n\nFit them in **October**.")
    assert '| 16" | 80 EUR |' in page.text
    assert not any(word in page.text for word in ("alert", "color", "Home", "Imprint"))
    assert split_document(page)[0].headings == "Kestrel: tyres > Winter tyres"


def test_a_web_page_may_declare_another_encoding(folder):
    page = '<html><head><meta charset="iso-8859-1"></head><body><h1>Gebühren</h1><p>10 Mark</p></body></html>'
    (folder / "a.htm").write_bytes(page.encode("latin-1"))

    assert [d.title for d in read_documents()] == ["Gebühren"]


def test_a_pdf_becomes_its_text_with_a_heading_per_page(folder):
    (folder / "manual.pdf").write_bytes(pdf("Open the cover.\nPress the button.", "Close it.", title="The manual"))

    (manual,) = read_documents()
    assert (manual.title, manual.format) == ("The manual", "pdf")
    assert manual.text == "# The manual\n\n## Page 1\n\nOpen the cover.\nPress the button.\n\n## Page 2\n\nClose it."
    assert split_document(manual)[0].headings in ("The manual > Page 1", "The manual > Page 2")


def test_plain_text_has_no_headings_whatever_it_looks_like(folder):
    (folder / "notes.txt").write_text("Notes of May\n\n# not a heading\n\nText.")

    (notes,) = read_documents()
    assert (notes.title, notes.format) == ("Notes of May", "text")
    assert {chunk.headings for chunk in split_document(notes)} == {"Notes of May"}


BROKEN = {
    "empty.md": (b"", "empty"),
    "blank.txt": (b" \n\t\n", "empty"),
    "utf-16.md": ("# A".encode("utf-16"), "wrongly encoded"),
    "latin-1.txt": (b"Geb\xfchren", "wrongly encoded"),
    "undeclared.html": (b"<h1>Geb\xfchren</h1>", "wrongly encoded"),
    "no-text.html": (b"<html><script>1</script></html>", "empty"),
    "zeros.md": (b"# A\0B", "null"),
    "huge.md": (b"x" * 2000, "larger than 1,000 bytes"),
    "broken.pdf": (b"%PDF-1.7 and nothing more", "broken"),
    "scan.pdf": (b"", "empty"),
    "secret.pdf": (b"", "password"),
    "table.xlsx": (b"PK", "broken"),
    "film.mp4": (b"", "type that is not read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(folder, monkeypatch, name):
    content, complaint = BROKEN[name]
    content = {"scan.pdf": pdf(""), "secret.pdf": pdf("text", password="x")}.get(name, content)
    monkeypatch.setattr(documents, "MAX_BYTES", 1000 if name == "huge.md" else 1_000_000)
    (folder / name).write_bytes(content)

    with pytest.raises(UnreadableDocument, match=f"^{re.escape(name)} .*{complaint}"):
        read_document(name)


def test_a_document_of_too_much_text_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(document_formats, "MAX_CHARACTERS", 100)
    (folder / "bomb.pdf").write_bytes(pdf(*["many words " * 5] * 5))

    with pytest.raises(UnreadableDocument, match=r"bomb\.pdf holds more than 100 characters"):
        read_document("bomb.pdf")


ODD_TEXTS = {  # as a file says it, and as it is indexed
    "half \ud83d one": "half \ufffd one",
    "\udf89 other half": "\ufffd other half",
    "pair \ud83d\ude9a": "pair \U0001f69a",
    "nu\0ll": "null",
}


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_half_characters_and_nulls_of_a_pdf_do_not_stop_it(folder, text):
    (folder / "page.pdf").write_bytes(pdf_that_means(text))

    found = read_document("page.pdf")
    assert ODD_TEXTS[text] in found.text
    assert found.title == ODD_TEXTS[text]
    assert ODD_TEXTS[text] in split_document(found)[0].text


def test_half_characters_and_nulls_of_a_web_page_do_not_stop_it(folder):
    (folder / "page.html").write_bytes(b"<h1>half &#xd83d; one, nu\0ll, \xf0\x9f\x9a\x9a</h1>")

    found = read_document("page.html")
    assert found.title == "half \ufffd one, null, \U0001f69a"
    assert found.text == f"# {found.title}"


@given(st.text(st.characters(categories=None), max_size=200))
def test_any_text_of_a_page_can_be_cut_stored_and_compared(text):
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENAI_KNOWLEDGE_BASE", folder)
        escaped = "".join(f"&#{ord(character)};" for character in text)
        (Path(folder) / "page.html").write_text(f"<h1>Title</h1><p>{escaped}</p>")
        found = split_document(read_document("page.html"))

    assert json.loads(json.dumps(found[0].text, ensure_ascii=False).encode()) == found[0].text
    assert not any("\0" in chunk.text for chunk in found)


def test_a_file_whose_name_is_not_utf_8_is_named_and_left_out(folder, caplog):
    (folder / "good.md").write_text("# Good")
    (Path(os.fsdecode(os.fsencode(folder) + b"/geb\xfchren.md"))).write_text("# Bad name")

    assert list(listed_documents()) == ["good.md"]
    assert r"b'geb\xfchren.md'" in caplog.text


def test_links_hidden_files_and_pipes_are_named_and_left_out(folder, tmp_path_factory, caplog):
    caplog.set_level(logging.INFO)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "secret.md").write_text("# Keys")
    (folder / "good.md").write_text("# Good")
    (folder / "link.md").symlink_to(elsewhere / "secret.md")
    (folder / "inside.md").symlink_to(folder / "good.md")
    (folder / "linked").symlink_to(elsewhere)
    (folder / ".hidden.md").write_text("# Hidden")
    (folder / ".git").mkdir()
    (folder / ".git" / "description.md").write_text("# Hidden")
    os.mkfifo(folder / "pipe.md")

    assert list(listed_documents()) == ["good.md"]
    assert "symbolic links (copy the files instead): 3: inside.md, link.md, linked" in caplog.text
    assert "hidden: 2: .git, .hidden.md" in caplog.text
    assert "neither files nor folders: 1: pipe.md" in caplog.text


@pytest.mark.parametrize("name", ["link.md", "linked/secret.md", "../elsewhere/secret.md", "/etc/passwd", "."])
def test_no_name_leads_out_of_the_knowledge_base(tmp_path, monkeypatch, name):
    folder, elsewhere = tmp_path / "knowledge", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "secret.md").write_text("# Keys")
    (folder / "good.md").write_text("# Good")
    (folder / "link.md").symlink_to(elsewhere / "secret.md")
    (folder / "linked").symlink_to(elsewhere)
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", str(folder))

    with pytest.raises(AirflowFailException, match="There is no document"):
        read_document(name)
    assert file_checksum(name) == file_checksum("no-such.md")


def test_a_knowledge_base_may_itself_be_a_link(tmp_path, monkeypatch):
    (tmp_path / "version-1").mkdir()
    (tmp_path / "version-1" / "good.md").write_text("# Good")
    (tmp_path / "current").symlink_to(tmp_path / "version-1")
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", str(tmp_path / "current"))

    assert [read_document(name).title for name in listed_documents()] == ["Good"]


def test_files_that_are_no_documents_are_counted_once_and_are_no_errors(folder, caplog):
    caplog.set_level(logging.INFO)
    (folder / "good.md").write_text("# Good")
    for name in ("logo.png", "style.css", "film.mp4"):
        (folder / name).write_bytes(b"\0")

    assert list(listed_documents()) == ["good.md"]
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("INFO", "Left out, files of types that are not read: 3")


@pytest.mark.parametrize("name", ["", "no-such-folder"])
def test_a_folder_without_documents_is_an_error_that_names_it(folder, monkeypatch, name):
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", str(folder / name))
    with pytest.raises(ValueError, match=str(folder / name)):
        listed_documents()


def test_a_document_that_is_not_there_is_named_with_those_that_are(folder):
    (folder / "good.md").write_text("# Good")

    with pytest.raises(AirflowFailException, match=r"'../good\.md'.*There are: good\.md"):
        read_document("../good.md")


@pytest.mark.parametrize("document", ALL, ids=lambda d: d.source)
def test_chunks_are_small_in_order_and_miss_nothing(document):
    chunks = split_document(document)
    texts = [chunk.text.split("\n", 1) for chunk in chunks]

    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    assert [headings for headings, _ in texts] == [chunk.headings for chunk in chunks]
    assert all(0 < len(text) <= CHUNK_CHARACTERS for _, text in texts)
    assert {(chunk.source, chunk.title, chunk.document_checksum, chunk.document_chunks) for chunk in chunks} == {
        (document.source, document.title, document.checksum, len(chunks))
    }
    together = " ".join(text for _, text in texts)
    assert [word for word in document.text.split() if word not in together] == []


def test_a_chunk_knows_the_path_of_headings_that_it_stands_under():
    filler = "Many words of no meaning. " * 25
    code = "```\n# a comment, no heading\n```"
    text = f"# Top\n\n{filler}\n\n## Left\n\n### Deep\n\n{filler}\n\n{code}\n\n{filler}\n\nRight\n-----\n\n{filler}"

    paths = list(dict.fromkeys(chunk.headings for chunk in split_document(document(text))))
    assert paths == ["Top", "Top > Left", "Top > Left > Deep", "Top > Right"]


def test_neighbouring_chunks_of_a_long_text_overlap():
    words = " ".join(f"word{n}" for n in range(400))
    chunks = [chunk.text.split("\n", 1)[1] for chunk in split_document(document(words))]

    assert len(chunks) > 3
    for before, after in pairwise(chunks):
        assert after.split()[0] in before.split()


def test_chunk_ids_are_the_same_at_every_run_and_differ_between_chunks():
    ids = [chunk.id for d in ALL for chunk in split_document(d)]

    assert ids == [chunk.id for d in read_documents() for chunk in split_document(d)]
    assert len(set(ids)) == len(ids)
    (chunk,) = split_document(document("# A"))
    assert chunk.id == "6d2d217b-f13a-57f2-a477-deef86bc3e9e"


def test_an_edited_document_keeps_its_chunk_ids_and_gets_other_checksums():
    (old,), (new,) = split_document(document("Old.")), split_document(document("New."))

    assert old.id == new.id
    assert old.checksum != new.checksum


def test_a_files_checksum_changes_with_its_bytes_and_with_the_size_of_chunks(folder, monkeypatch):
    path: Path = folder / "a.md"
    path.write_text("Text.")
    before = file_checksum("a.md")
    assert read_document("a.md").checksum == before

    monkeypatch.setattr(documents, "CHUNK_CHARACTERS", 400)
    smaller = file_checksum("a.md")
    path.write_text("Text!")
    assert len({before, smaller, file_checksum("a.md")}) == 3
    assert list(listed_documents()) == ["a.md"]
