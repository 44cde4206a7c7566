"""A knowledge base in a bucket: workers without a shared disk list and read the same documents."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from llmock.scenarios import Match, Reply, ToolCall

from include.rag import documents, ingestion
from include.rag.bucket import Bucket
from include.rag.documents import knowledge_base, listed_documents, read_document
from include.rag.search import INDEX
from include.rag.stores.open import open_vector_store
from tests.storages import BUCKET, on_storage, s3_requests

pytestmark = pytest.mark.one_stack

EVERYWHERE = on_storage("s3", "connection", "other", "memory")
QUESTION = {"query": "How long is a reset link valid?", "min_score": -1, "mode": "vector"}


@pytest.fixture
def handbook(storage, monkeypatch) -> Any:
    """A bucket's folder with three documents, to change at will."""
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", f"{os.environ['GENAI_STORAGE']}/handbook")
    folder = storage / "handbook"
    for name in ("a.md", "sub folder/b?.md", "c.txt"):
        (folder / name).write_bytes(f"# {name}\n\nThe text of {name}.".encode())
    return folder


def indexed() -> dict[str, str]:
    with open_vector_store() as store:
        return store.collection(store.active(INDEX) or "").documents()


@on_storage("connection")
def test_a_run_indexes_what_is_in_the_bucket_and_the_next_only_what_changed(run_dag, llm, handbook):
    answered = ToolCall("final_result", {"answer": "Sixty minutes.", "answered": True, "passages": [1]})
    for _ in range(2):
        llm.add(Reply(tool_calls=(answered,), match=Match(path="*/chat/completions")))
    run = run_dag("rag_pipeline", QUESTION)
    assert run.state == "success"
    assert indexed() == listed_documents()
    assert list(indexed()) == ["a.md", "c.txt", "sub folder/b?.md"]

    (handbook / "a.md").write_bytes(b"# A\n\nAnother text.")
    (handbook / "c.txt").unlink()
    (handbook / "new" / "d.md").write_bytes(b"# D")
    run = run_dag("rag_pipeline", QUESTION)
    assert [share["documents"].keys() for share in run.xcom("find_changes")] == [{"a.md", "new/d.md"}]
    assert run.xcom("finish_index")["removed"] == ["c.txt"]
    assert indexed() == listed_documents()
    assert not ingestion.find_changes()["documents"]


@EVERYWHERE
def test_what_changes_between_the_listing_and_the_reading_is_left_out_until_the_next_run(llm, handbook, caplog):
    changes = ingestion.find_changes()
    (handbook / "a.md").write_bytes(b"# Edited since")
    (handbook / "c.txt").unlink()
    done = ingestion.index_documents(changes["collection"], changes["documents"])

    assert done["differing"] == ["a.md", "c.txt"]
    assert "Left out: a.md is not the version that was listed" in caplog.text
    assert "Left out: c.txt is missing" in caplog.text
    ingestion.finish_index(changes["collection"], changes["gone"])
    assert indexed().keys() == {"sub folder/b?.md"}
    ingestion.refresh_index()
    assert indexed().keys() == {"a.md", "sub folder/b?.md"}


@EVERYWHERE
def test_a_bucket_that_fails_while_it_is_read_fails_the_task_and_a_retry_goes_on(llm, handbook, monkeypatch):
    changes = ingestion.find_changes()
    fs = type(Bucket(os.environ["GENAI_KNOWLEDGE_BASE"])._path.fs)
    opened = fs.open

    def fails(self: Any, path: str, *args: Any, **options: Any) -> Any:
        if "sub folder" in path:
            raise OSError("Please reduce your request rate.")
        return opened(self, path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "open", fails)
        with pytest.raises(AirflowException, match=r"sub folder/b\?\.md cannot be read from .*handbook: Please reduce"):
            ingestion.index_documents(changes["collection"], changes["documents"])
    done = ingestion.index_documents(changes["collection"], changes["documents"])
    assert (done["documents"], done["differing"], done["unreadable"]) == (3, [], {})


@EVERYWHERE
def test_an_emptied_bucket_deletes_nothing_and_is_named(llm, handbook):
    ingestion.refresh_index()
    before = indexed()
    for name in ("a.md", "sub folder/b?.md", "c.txt"):
        (handbook / name).unlink()

    with pytest.raises(ValueError, match=r"There are no documents in .*/handbook\. .*The index stays"):
        ingestion.refresh_index()
    assert indexed() == before


def test_a_bucket_that_is_not_there_is_named(s3, monkeypatch):
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", "s3://your-bukcet/handbook")
    with pytest.raises(AirflowException, match=r"s3://aws_default@your-bukcet/handbook cannot be listed: .*not exist"):
        listed_documents()


@on_storage("s3")
def test_what_is_no_document_is_left_out_and_named(handbook, storage, s3, caplog):
    caplog.set_level(logging.INFO)
    prefix = str(storage).removeprefix(f"s3://{BUCKET}/")
    for name in ("folder/", ".hidden.md", ".git/x.md", "../up.md", "a//b.md", "logo.png"):
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}/handbook/{name}", Body=b"")

    assert list(listed_documents()) == ["a.md", "c.txt", "sub folder/b?.md"]
    assert "hidden: 3: ../up.md, .git/x.md, .hidden.md" in caplog.text
    assert "have // (rename them): 1: a//b.md" in caplog.text
    assert "files of types that are not read: 1" in caplog.text


@pytest.mark.parametrize("name", ["../secret.md", "sub/../../secret.md", "/secret.md", "", "."])
@EVERYWHERE
def test_no_name_leads_out_of_the_bucket_s_folder(handbook, storage, name):
    (storage / "secret.md").write_bytes(b"# Keys")
    with pytest.raises(AirflowFailException, match=r"There is no document .* There are: a\.md"):
        read_document(name)


@on_storage("s3")
def test_a_large_object_is_refused_before_it_fills_the_memory(handbook, monkeypatch):
    monkeypatch.setattr(documents, "MAX_BYTES", 1000)
    (handbook / "huge.md").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"huge\.md is larger than 1,000 bytes"):
        read_document("huge.md")


def test_a_password_in_the_url_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", "s3://key:the-secret@your-bucket/handbook")
    for call in (listed_documents, lambda: read_document("a.md"), knowledge_base):
        with pytest.raises(ValueError, match="put it into a connection") as refused:
            call()
        assert "the-secret" not in str(refused.value)


@on_storage("s3")
def test_a_bucket_is_no_folder_for_a_source_to_fill(handbook):
    with pytest.raises(ValueError, match="which is not a folder"):
        knowledge_base()


def test_the_listing_of_many_documents_is_one_request_and_an_unchanged_one_is_never_fetched(s3, monkeypatch):
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", "s3://your-bucket/many")
    for number in range(20):
        s3.put_object(Bucket=BUCKET, Key=f"many/{number}.md", Body=b"# Page")
    with s3_requests() as made:
        assert len(listed_documents()) == 20
    (listing,) = made
    assert listing.startswith("GET ?list-type=2&prefix=many/")
