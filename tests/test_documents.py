"""`include.documents`: reading the knowledge base, and cutting it into chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest

from include import documents
from include.documents import CHUNK_CHARACTERS, Document, read_documents, split_document

pytestmark = pytest.mark.one_stack

ALL = list(read_documents())


def document(text: str, source: str = "a.md") -> Document:
    return Document(source=source, title="A", text=text)


def test_documents_come_by_name_with_their_first_heading_as_title(tmp_path):
    (tmp_path / "b.md").write_text("## Second *title*\n\nText.\n", encoding="utf-8")
    (tmp_path / "a.md").write_text("\n# Gebühren & Preise\n\nText.\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no document")

    assert [(d.source, d.title) for d in read_documents(tmp_path)] == [
        ("a.md", "Gebühren & Preise"),
        ("b.md", "Second *title*"),
    ]


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xff\xfe# A"], ids=["empty", "blank", "UTF-16"])
def test_a_document_that_cannot_be_used_is_named(tmp_path, content):
    (tmp_path / "good.md").write_text("# Good")
    (tmp_path / "odd.md").write_bytes(content)

    with pytest.raises(ValueError, match=r"^odd\.md is "):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("folder", ["", "no-such-folder"])
def test_a_folder_without_documents_is_an_error_that_names_it(tmp_path, folder):
    with pytest.raises(ValueError, match=str(tmp_path / folder)):
        list(read_documents(tmp_path / folder))


@pytest.mark.parametrize("document", ALL, ids=lambda d: d.source)
def test_chunks_are_small_in_order_and_miss_nothing(document):
    chunks = split_document(document)

    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    assert all(0 < len(chunk.text) <= CHUNK_CHARACTERS for chunk in chunks)
    assert {(chunk.source, chunk.title, chunk.document_checksum) for chunk in chunks} == {
        (document.source, document.title, document.checksum)
    }
    together = " ".join(chunk.text for chunk in chunks)
    assert [word for word in document.text.split() if word not in together] == []


def test_neighbouring_chunks_of_a_long_text_overlap():
    words = " ".join(f"word{n}" for n in range(400))
    chunks = split_document(document(words))

    assert len(chunks) > 3
    for before, after in pairwise(chunks):
        assert after.text.split()[0] in before.text.split()


def test_chunk_ids_are_the_same_at_every_run_and_differ_between_chunks():
    ids = [chunk.id for d in ALL for chunk in split_document(d)]

    assert ids == [chunk.id for d in read_documents() for chunk in split_document(d)]
    assert len(set(ids)) == len(ids)
    (chunk,) = split_document(document("# A"))
    assert chunk.id == "6d2d217b-f13a-57f2-a477-deef86bc3e9e"


def test_an_edited_document_keeps_its_chunk_ids_and_gets_another_checksum():
    (old,), (new,) = split_document(document("Old.")), split_document(document("New."))

    assert old.id == new.id
    assert old.document_checksum != new.document_checksum


def test_another_chunk_size_changes_the_checksum_and_so_indexes_anew(monkeypatch):
    before = document("Text.").checksum
    monkeypatch.setattr(documents, "CHUNK_CHARACTERS", 400)

    assert document("Text.").checksum != before
