"""`include.rag.bounded`: a file can neither stop nor fill the task that reads it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from include.rag import bounded
from include.rag.bounded import UnreadableDocument
from include.rag.documents import read_document
from tests.document_files import pdf

pytestmark = pytest.mark.one_stack

PAGE = b"<h1>Resetting</h1>"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", str(tmp_path))
    (tmp_path / "good.html").write_bytes(PAGE)
    return tmp_path


def bomb() -> bytes:
    """A PDF of 100 kB whose page has a million texts."""
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import DecodedStreamObject, NameObject

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("A"))))
    content = DecodedStreamObject()
    content.set_data(b"BT /F1 12 Tf (A) Tj ET " * 1_000_000)
    writer.pages[0][NameObject("/Contents")] = writer._add_object(content.flate_encode())
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nested.html", b"<ul><li>" * 200_000),
        ("paragraphs.html", b"<p>" + b"<div>" * 500_000),
        ("bomb.pdf", bomb()),
    ],
)
def test_a_file_that_takes_too_long_is_named_and_the_next_one_is_read(folder, monkeypatch, name, content):
    monkeypatch.setattr(bounded, "MOST_CPU_SECONDS", 1)
    (folder / name).write_bytes(content)

    with pytest.raises(UnreadableDocument, match=f"^{name} takes more than 1 s to read"):
        read_document(name)
    monkeypatch.undo()
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", str(folder))
    assert read_document("good.html").title == "Resetting"


def test_a_file_that_needs_too_much_memory_is_named_and_the_next_one_is_read(folder, monkeypatch):
    monkeypatch.setattr(bounded, "MOST_MEMORY", 300_000_000)
    (folder / "many.csv").write_bytes(b"a,b\n" * 4_000_000)

    with pytest.raises(UnreadableDocument, match=r"^many\.csv .*too much memory"):
        read_document("many.csv")
    assert read_document("good.html").title == "Resetting"


def test_a_small_file_that_becomes_a_huge_text_is_named_and_the_next_one_is_read(folder):
    """Each row of a table is repeated with its labels."""
    (folder / "labels.csv").write_bytes(b"a" * 100_000 + b",b\n" + b"1,2\n" * 2_000)

    with pytest.raises(UnreadableDocument, match=r"^labels\.csv makes more than 50,000,000 bytes of text"):
        read_document("labels.csv")
    assert read_document("good.html").title == "Resetting"


def test_a_parser_that_crashes_is_started_again():
    with pytest.raises(UnreadableDocument, match="crashes its parser, or needs too much memory"):
        bounded.call("a.html", "signal.raise_signal", signal.SIGKILL)
    assert bounded.call("a.html", "include.rag.web_pages.read_page", PAGE).title == "Resetting"


def test_a_parser_that_was_killed_between_two_files_is_started_again():
    bounded.call("a.html", "include.rag.web_pages.read_page", PAGE)
    process = bounded._running[os.getpid()].process
    process.kill()
    process.wait()

    assert bounded.call("a.html", "include.rag.web_pages.read_page", PAGE).title == "Resetting"


def test_one_process_serves_all_files_of_all_threads():
    pages = [f"<h1>Page {n}</h1>".encode() for n in range(100)]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda page: bounded.call("a.html", "include.rag.web_pages.read_page", page).title, pages)
        )

    assert found == [f"Page {n}" for n in range(100)]
    children = [child for child in psutil.Process().children() if "include.rag.bounded" in " ".join(child.cmdline())]
    assert len(children) == 1


def test_a_forked_process_has_a_parser_of_its_own():
    bounded.call("a.html", "include.rag.web_pages.read_page", PAGE)
    child = os.fork()
    if child == 0:
        found = bounded.call("a.html", "include.rag.web_pages.read_page", b"<h1>Of the child</h1>").title
        os._exit(0 if found == "Of the child" else 1)

    assert bounded.call("a.html", "include.rag.web_pages.read_page", PAGE).title == "Resetting"
    assert os.waitpid(child, 0)[1] == 0


def test_the_parser_ends_with_the_task_that_started_it():
    code = (
        "import os, sys; from include.rag import bounded;"
        "bounded.call('a.html', 'include.rag.web_pages.read_page', b'<h1>A</h1>');"
        "print(bounded._running[os.getpid()].process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as task:
        assert task.stdout
        parser = psutil.Process(int(task.stdout.readline()))
        task.kill()
    parser.wait(timeout=300)


def test_a_missing_package_is_named(monkeypatch):
    from include.rag.office import read_excel, read_powerpoint, read_word

    for read, module, package in (
        (read_word, "mammoth", "mammoth"),
        (read_powerpoint, "pptx", "python-pptx"),
        (read_excel, "python_calamine", "python-calamine"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UnreadableDocument, match=f"needs the package {package}, .* in requirements.txt"):
            read(b"")
