"""`include.common.storage`: artifacts are written whole or not at all, each run's in a folder of its own."""

from __future__ import annotations

import asyncio
import importlib.util
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from include.batch.chunks import Chunk, write_chunks
from include.batch.rows import Result, Row, read_rows
from include.common.storage import DEFAULT_FOLDER, artifact_path, name_on_storage, storage_path, write_artifact
from include.common.stored_files import input_file, local_file, new_artifact, stored_file
from tests.conftest import PROJECT
from tests.storages import on_storage

EVERYWHERE = on_storage("disk", "s3", "connection", "other", "memory")
ODD_FOLDERS = ["a b", "Größe", "c++", "c#", "100%", "50%25", "[x]", "[", "a?b", "~", "a&b=c;d@e:f"]


@contextmanager
def full_disk():
    """No file can grow beyond a hundred bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def local(url: object) -> Path:
    return Path(str(url).removeprefix("file://"))


@pytest.mark.parametrize("content", ["Grüße", b"\x00\xff", ""], ids=["text", "bytes", "nothing"])
@EVERYWHERE
def test_an_artifact_holds_what_was_written_and_its_url_is_returned(storage, content):
    path = artifact_path("reports", "run", "a.txt")
    written = content.encode() if isinstance(content, str) else content
    url = write_artifact(path, content)

    assert url == f"{storage_path()}/reports/run/a.txt"
    assert (storage / "reports" / "run" / "a.txt").read_bytes() == written
    assert stored_file(url).read_bytes() == written
    with new_artifact(path) as file:
        file.write(written * 2)
    assert path.read_bytes() == written * 2


@EVERYWHERE
def test_a_file_that_another_worker_wrote_or_removed_meanwhile_is_seen(storage):
    folder = storage_path("shared")
    write_artifact(folder / "mine", "1")
    assert ((folder / "other").exists(), len(list(folder.iterdir()))) == (False, 1)

    (storage / "shared" / "other").write_bytes(b"2")
    assert ((folder / "other").exists(), len(list(folder.iterdir()))) == (True, 2)
    (storage / "shared" / "mine").unlink()
    assert ((folder / "mine").exists(), len(list(folder.iterdir()))) == (False, 1)


@on_storage("connection")
def test_nothing_is_remembered_where_a_large_xcom_has_opened_the_bucket_before(storage, monkeypatch):
    from airflow.sdk import ObjectStoragePath

    monkeypatch.setattr("fsspec.config.conf", {})
    xcoms = ObjectStoragePath(f"{storage}/xcom".replace("s3://", "s3://aws_default@"))
    (storage / "xcom" / "a.json").write_bytes(b"1")
    assert len(list(xcoms.iterdir())) == 1
    (storage / "xcom" / "b.json").write_bytes(b"2")
    assert len(list(storage_path("xcom").iterdir())) == 2


@on_storage("disk", "connection")
def test_a_file_whose_writing_fails_is_not_there(storage):
    def fails() -> None:
        with new_artifact(storage_path("a.txt")) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not (storage / "a.txt").exists()


@on_storage("s3", "connection")
def test_a_bucket_is_opened_within_an_event_loop(storage, monkeypatch):
    from airflow.sdk.io import store

    monkeypatch.setattr(store, "_STORE_CACHE", {})

    async def write_and_read() -> bytes:
        return bytes(stored_file(write_artifact(storage_path("a.txt"), "text")).read_bytes())

    assert asyncio.run(write_and_read()) == b"text"
    assert (storage / "a.txt").read_bytes() == b"text"


def test_a_bucket_that_is_not_there_is_not_created(s3, monkeypatch):
    monkeypatch.setenv("GENAI_STORAGE", "s3://your-bukcet/genai")
    named = "s3://aws_default@your-bukcet/genai/a.txt: .*bucket does not exist"
    with pytest.raises(OSError, match=named):
        write_artifact(storage_path("a.txt"), "text")
    with pytest.raises(OSError, match=named), new_artifact(storage_path("a.txt")) as file:
        file.write(b"text")
    assert "your-bukcet" not in [each["Name"] for each in s3.list_buckets()["Buckets"]]


@on_storage("connection")
def test_a_url_from_the_buckets_own_tools_is_accepted_too(storage):
    (storage / "rows.csv").write_bytes(b"text\n")
    assert str(storage_path()).startswith("s3://aws_default@")

    assert stored_file(f"{storage}/rows.csv").read_bytes() == b"text\n"
    for url in (f"{storage}/../x.csv", f"{storage}-other/x.csv", "s3://your-bucket/x.csv"):
        with pytest.raises(ValueError, match="is not a file on this project's storage"):
            stored_file(url)


@pytest.mark.parametrize("value", ["s3://bucket/a*", "s3://bucket/[x]"])
def test_a_storage_that_cannot_be_used_is_refused_by_name(monkeypatch, value):
    monkeypatch.setenv("GENAI_STORAGE", value)
    with pytest.raises(ValueError, match="GENAI_STORAGE="):
        storage_path("a.txt")


def test_a_plain_path_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GENAI_STORAGE", f"{tmp_path}/a b")
    assert write_artifact(storage_path("a.txt"), "text") == f"file://{tmp_path}/a b/a.txt"
    assert (tmp_path / "a b" / "a.txt").read_text() == "text"


@on_storage("disk", "s3")
def test_half_a_character_loses_no_artifact(storage):
    write_artifact(storage_path("a.json"), '{"answer": "\ud83d"}')
    assert (storage / "a.json").read_bytes() == b'{"answer": "\\ud83d"}'


# A project's folder, and one for artifacts, of any name


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_artifacts_of_a_project_in_a_folder_of_any_name_stay_in_it(tmp_path, monkeypatch, name):
    monkeypatch.delenv("GENAI_STORAGE", raising=False)
    file = tmp_path / name / "include" / "common" / "storage.py"
    file.parent.mkdir(parents=True)
    shutil.copy(PROJECT / "include" / "common" / "storage.py", file)
    spec = importlib.util.spec_from_file_location("storage_of_another_project", file)
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)

    path = copied.artifact_path("reports", "run", "a.txt")
    url = copied.write_artifact(path, "text")
    assert (file.parents[1] / ".data" / "artifacts" / "reports" / "run" / "a.txt").read_text() == "text"
    monkeypatch.setattr("include.common.storage.DEFAULT_FOLDER", copied.DEFAULT_FOLDER)
    assert stored_file(url).read_text() == "text"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]
    bundled = tmp_path / name / "rows.csv"
    bundled.write_text("text\nHello.\n")
    assert [row.text for row in read_rows(local_file(bundled), "text", None)] == ["Hello."]


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_a_batch_goes_on_where_it_stopped_in_a_folder_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv("GENAI_STORAGE", f"file://{tmp_path}/{name}/artifacts")
    rows = [Row(1, "a", "One."), Row(2, "b", "Two.")]
    ((chunk, _),) = write_chunks(rows, "settings", storage_path("chunks"), 1)
    paid = [Result(1, "a", {"label": "x"}, calls=1), Result(2, "b", {"label": "y"}, calls=1)]
    for result in paid:  # each by a worker that was killed
        asyncio.run(Chunk(storage_path("chunks") / chunk).note(result))

    again = Chunk(storage_path("chunks") / chunk)
    assert (sorted(again.recall(), key=lambda each: each.row), again.rows()) == (paid, rows)
    again.complete(rows)
    assert again.so_far() == (paid, True)
    assert {each.name for each in again.folder.iterdir()} == {"rows.jsonl", "results.jsonl"}
    write_artifact(storage_path("in", "rows.csv"), "text\nHello.\n")
    (row,) = read_rows(input_file(str(storage_path("in", "rows.csv")), tmp_path), "text", None)
    assert row.text == "Hello."


def test_a_second_write_replaces_the_first_one_whole(storage):
    path = artifact_path("reports", "run", "a.txt")
    write_artifact(path, "a long first version")
    write_artifact(path, "short")

    assert local(path).read_text() == "short"


def test_a_write_that_fails_leaves_the_old_artifact_as_it_was(storage):
    path = artifact_path("reports", "run", "a.txt")
    write_artifact(path, "old")
    with full_disk(), pytest.raises(OSError, match="too large"):
        write_artifact(path, "new" * 100_000)

    assert local(path).read_text() == "old"
    write_artifact(path, "newer")
    assert local(path).read_text() == "newer"


def test_a_first_write_that_fails_leaves_no_artifact(storage):
    path = artifact_path("reports", "run", "a.txt")
    with full_disk(), pytest.raises(OSError, match="too large"):
        write_artifact(path, "new" * 100_000)

    assert not path.exists()


def test_many_threads_can_write_at_the_same_time(storage):
    paths = [artifact_path("reports", f"run-{number}", "a.txt") for number in range(200)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda path: write_artifact(path, str(path)), paths))

    assert all(local(path).read_text() == str(path) for path in paths)


def test_a_run_id_cannot_leave_its_folder(storage):
    path = artifact_path("reports", "manual__2026-01-02T03:04:05+00:00/../../x", "a.txt")
    write_artifact(path, "text")

    (file,) = storage.rglob("a.txt")
    assert file.parent.parent == storage / "reports"


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_without_a_storage_artifacts_go_to_a_folder_of_the_project(monkeypatch, value):
    monkeypatch.delenv("GENAI_STORAGE", raising=False)
    if value is not None:
        monkeypatch.setenv("GENAI_STORAGE", value)

    assert str(artifact_path("reports", "run", "a.txt")) == f"file://{DEFAULT_FOLDER}/reports/run/a.txt"


NAMES = st.text(max_size=300) | st.text("./%=a", max_size=6)


@settings(deadline=None, max_examples=50)
@given(NAMES, NAMES)
@example(".", "..")
@example("", ".")
@example("manual__2026-11-25T10:00:00+00:00", "manual__2026-11-25T10-00-00-00-00")
@example("\u6f22" * 29, "\u6f22" * 30)
@example("x" * 300, "x" * 301)
def test_a_name_from_outside_is_one_short_name_on_storage_and_its_own(one, other):
    name = name_on_storage(one)

    assert name.strip(".")
    assert quote(name, safe="") == unquote(name) == name, "a URL with it can be pasted anywhere"
    assert len(name) <= 160  # a temporary file adds to it
    assert (name == name_on_storage(other)) == (one == other)
