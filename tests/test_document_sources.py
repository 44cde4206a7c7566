"""Documents from elsewhere: the folder becomes what the source has, as the example of the docs does from a bucket."""

from __future__ import annotations

import os
import re

import pytest

from include.rag.documents import knowledge_base, listed_documents, read_document
from include.rag.sources import mirror
from tests.conftest import PROJECT
from tests.storages import BUCKET, s3_connection


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", str(tmp_path / "documents"))
    return knowledge_base()


def test_the_folder_becomes_what_the_source_has(folder):
    assert mirror([("a.md", b"# A"), ("b/c.md", b"# C")], folder) == {"written": 2, "kept": 0, "removed": 0}
    (folder / ".gitkeep").touch()
    assert mirror([("a.md", b"# A"), ("b/d.md", b"# D")], folder) == {"written": 1, "kept": 1, "removed": 1}
    assert list(listed_documents()) == ["a.md", "b/d.md"]
    assert (folder / ".gitkeep").exists()
    assert read_document("b/d.md").text == "# D"


def test_a_source_that_fails_half_way_or_has_nothing_removes_nothing(folder):
    mirror([("a.md", b"# A"), ("b.md", b"# B")], folder)

    def failing():
        yield "a.md", b"# New"
        raise OSError("the API is down")

    with pytest.raises(OSError, match="the API is down"):
        mirror(failing(), folder)
    assert list(listed_documents()) == ["a.md", "b.md"]
    assert read_document("a.md").text == "# New"
    with pytest.raises(ValueError, match="has no documents"):
        mirror([], folder)
    assert list(listed_documents()) == ["a.md", "b.md"]


def test_what_a_killed_run_left_is_removed_and_what_another_run_is_writing_is_not(folder):
    mirror([("b/a.md", b"# A")], folder)
    left, written = (folder / "b" / f".{name}.part" for name in ("left", "written"))
    for path in (left, written):
        path.write_bytes(b"# ")
    os.utime(left, (0, 0))
    mirror([("b/a.md", b"# A")], folder)
    assert sorted((folder / "b").iterdir()) == [written, folder / "b" / "a.md"]


@pytest.mark.parametrize("name", ["../x.md", "/etc/x.md", "a/../../x.md", "", "a\0.md"])
def test_a_name_that_leads_out_of_the_folder_is_refused(folder, name):
    mirror([("a.md", b"# A")], folder)
    with pytest.raises(ValueError, match="not a path below the knowledge base"):
        mirror([(name, b"x")], folder)
    assert [path.name for path in folder.parent.rglob("*.md")] == ["a.md"]


def test_the_example_of_the_docs_brings_documents_from_a_bucket(folder, s3, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_connection(s3))
    for name in ("one.md", "sub/two.md"):
        s3.put_object(Bucket=BUCKET, Key=f"handbook/{name}", Body=b"# Title")
    (example,) = re.findall(
        r"^```python\n(.*?)^```", (PROJECT / "docs" / "document-sources.md").read_text(), re.DOTALL | re.MULTILINE
    )
    defined: dict = {"__name__": "sync_documents"}
    exec(compile(example, "sync_documents.py", "exec"), defined)  # noqa: S102
    assert mirror(defined["documents"](), folder) == {"written": 2, "kept": 0, "removed": 0}
    assert list(listed_documents()) == ["one.md", "sub/two.md"]
    assert mirror(defined["documents"](), folder) == {"written": 0, "kept": 2, "removed": 0}
