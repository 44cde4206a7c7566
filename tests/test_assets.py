"""What the asset DAGs are made of: changes since the last update, files that events name, topics of feedback."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from include.common.asset_events import files_of
from include.common.storage import storage_path, write_artifact
from include.common.stored_files import stored_file
from include.rag.updates import remember_update, update_of
from include.sample.feedback import count_topics, read_texts, top_topics, topic_table
from tests.storages import on_storage


def changes(documents):
    found = update_of(documents)
    return found["added"], found["changed"], found["removed"]


@on_storage("disk", "s3")
def test_changes_are_counted_from_what_was_remembered_last(storage):
    documents = {"a.md": "checksum of a", "b.md": "checksum of b"}
    assert changes(documents) == (["a.md", "b.md"], [], [])
    assert changes(documents) == (["a.md", "b.md"], [], [])  # an update that failed is repeated

    remember_update(update_of(documents))
    assert changes(documents) == ([], [], [])

    documents = {"a.md": "another", "c.md": "checksum of b"}
    assert changes(documents) == (["c.md"], ["a.md"], ["b.md"])


@pytest.mark.parametrize("name", ["../elsewhere.json", "run/../../elsewhere.json"])
def test_a_file_outside_the_storage_is_refused(storage, name):
    with pytest.raises(ValueError, match="is not a file on this project's storage"):
        stored_file(f"{storage_path()}/{name}")
    with pytest.raises(ValueError, match=r"'file:///etc/passwd' is not"):
        stored_file("file:///etc/passwd")
    assert str(stored_file(f"{storage_path()}/run/x.json")) == f"{storage_path()}/run/x.json"


@on_storage("disk", "s3")
def test_events_without_a_file_are_left_out_and_the_others_are_read(storage, caplog):
    path = storage_path("feedback", "new.jsonl")
    write_artifact(path, '{"text": "Fine."}\n')
    asset = SimpleNamespace(name="customer_reviews")
    events = [
        SimpleNamespace(asset=asset, timestamp=n, extra=extra)
        for n, extra in enumerate([{}, {"file": 7}, {"file": str(path)}, {"file": "s3://other/x"}])
    ]

    assert read_texts(files_of(events)) == ["Fine."]
    assert [record.levelname for record in caplog.records if record.levelname == "ERROR"] == ["ERROR"] * 3
    assert "customer_reviews" in caplog.text


@pytest.mark.parametrize("line", ["no json", "[]", '{"review": "x"}', "7"])
def test_a_line_without_a_text_is_named(storage, line):
    path = storage_path("bad.jsonl")
    write_artifact(path, f'{{"text": "Fine."}}\n{line}\n')

    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: not a JSON object with the field 'text'"):
        read_texts([path])


def test_half_characters_and_nulls_of_a_text_do_not_stop_it(storage):
    path = storage_path("odd.jsonl")
    write_artifact(path, r'{"text": "half \ud83d nu\u0000ll"}')

    assert read_texts([path]) == ["half \ufffd null"]


def test_topics_are_counted_once_per_text_and_shown_per_source():
    counts = {
        "reviews": count_topics(["The GPS position is wrong, tracker offline", "Lovely."]),
        "tickets": count_topics(["Tracker, and the invoice"]),
    }

    assert counts["reviews"] == {"tracking": 1, "other": 1}
    assert counts["tickets"] == {"tracking": 1, "billing": 1}
    assert top_topics(counts) == "2 about tracking, 1 about billing"
    assert topic_table(counts).splitlines()[2] == "| tracking | 1 | 1 |"
    assert top_topics({"reviews": count_topics([])}) == "nothing new"
