"""`include.storage`: artifacts are written whole or not at all, each run's in a folder of its own."""

from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from include.storage import DEFAULT_FOLDER, artifact_path, name_on_storage, write_artifact


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
def test_an_artifact_holds_what_was_written_and_its_url_is_returned(storage, content):
    path = artifact_path("reports", "run", "a.txt")
    url = write_artifact(path, content)

    assert url == f"file://{storage}/reports/run/a.txt"
    assert local(url).read_bytes() == (content.encode() if isinstance(content, str) else content)


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

    assert str(artifact_path("reports", "run", "a.txt")) == f"{DEFAULT_FOLDER.as_uri()}/reports/run/a.txt"


NAMES = st.text(max_size=300) | st.text("./%=a", max_size=6)


@settings(deadline=None, max_examples=50)
@given(NAMES, NAMES)
@example(".", "..")
@example("", ".")
@example("\u6f22" * 29, "\u6f22" * 30)
@example("x" * 300, "x" * 301)
def test_a_name_from_outside_is_one_short_name_on_storage_and_its_own(one, other):
    name = name_on_storage(one)

    assert name not in ("", ".", "..")
    assert "/" not in name
    assert len(name.encode()) <= 170  # a temporary file adds to it
    assert (name == name_on_storage(other)) == (one == other)
