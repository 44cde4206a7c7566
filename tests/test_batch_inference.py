"""The DAG `batch_inference`: one model call per review, and a report of what came back."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from include.sample.data import reviews
from tests.conftest import chat_requests
from tests.storages import on_storage


def answer(llm, *sentiments):
    for sentiment in sentiments:
        llm.call_tool("final_result", {"sentiment": sentiment, "summary": f"A {sentiment} review."})


def report_of(storage):
    (file,) = storage.glob("batch_inference/*/report.json")
    return json.loads(file.read_text())


def test_sample_reviews_are_counted_and_compared_with_their_labels(run_dag, llm, storage):
    answer(llm, *["positive"] * 5)
    run = run_dag("batch_inference", {"limit": 5})

    assert run.state == "success"
    rows = reviews()[:5]
    right = sum(row["sentiment"] == "positive" for row in rows)
    assert 0 < right < 5
    report = report_of(storage)
    assert report["counts"] == {"positive": 5, "negative": 0, "neutral": 0}
    assert report["accuracy"] == right / 5
    assert report["failed"] == []
    assert report["rows"] == [
        {"review_id": row["review_id"], "sentiment": "positive", "summary": "A positive review."} for row in rows
    ]
    assert run.xcom("report")["result"] == (
        f"5 positive, 0 negative, 0 neutral; agrees with {right} of 5 labels ({20 * right} %)"
    )


def test_each_row_goes_to_the_model_alone_without_its_label_and_is_named_in_the_ui(run_dag, llm):
    answer(llm, *["negative"] * 3)
    run = run_dag("batch_inference", {"limit": 3})

    rows = reviews()[:3]
    assert {run.task_instance("analyze", n).rendered_map_index for n in range(3)} == {r["review_id"] for r in rows}
    prompts = [json.dumps(request["messages"], ensure_ascii=False) for request in chat_requests(llm)]
    for row in rows:
        assert sum(json.dumps(row["review"], ensure_ascii=False)[1:-1] in prompt for prompt in prompts) == 1
    assert not any("R00" in prompt for prompt in prompts)


@pytest.mark.one_stack
def test_reviews_of_ones_own_are_counted_without_accuracy(run_dag, llm, storage):
    answer(llm, "positive", "negative", "positive")
    run = run_dag("batch_inference", {"reviews": ["Great.", "{{ 1 / 0 }}", "Fine."]})

    assert run.state == "success"
    report = report_of(storage)
    assert report["counts"] == {"positive": 2, "negative": 1, "neutral": 0}
    assert report["accuracy"] is None
    assert [row["review_id"] for row in report["rows"]] == ["row 1", "row 2", "row 3"]
    assert [run.task_instance("analyze", n).rendered_map_index for n in range(3)] == ["row 1", "row 2", "row 3"]
    assert any("{{ 1 / 0 }}" in json.dumps(request) for request in chat_requests(llm))


@pytest.mark.one_stack
@on_storage("s3")
def test_the_chart_is_an_svg_image_with_a_labelled_bar_per_sentiment(run_dag, llm, storage):
    answer(llm, "positive", "negative", "positive")
    run_dag("batch_inference", {"reviews": ["Great.", "Bad.", "Fine."]})

    (file,) = storage.glob("batch_inference/*/chart.svg")
    image = ElementTree.fromstring(file.read_bytes())  # noqa: S314
    assert image.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(image.findall(".//{*}g[@id]/{*}path[@clip-path]")) == 3


def failing_row(run):
    states = {n: run.states()[f"analyze[{n}]"] for n in range(3)}
    assert sorted(states.values()) == ["failed", "success", "success"]
    return next(n for n, state in states.items() if state == "failed")


def assert_one_row_is_named_and_the_others_are_kept(run, storage):
    assert run.state == "success"
    failed = f"row {failing_row(run) + 1}"
    report = report_of(storage)
    assert report["failed"] == [failed]
    assert report["counts"] == {"positive": 2, "negative": 0, "neutral": 0}
    assert {row["review_id"]: row.get("sentiment") for row in report["rows"]} == {
        row: None if row == failed else "positive" for row in ("row 1", "row 2", "row 3")
    }
    assert run.xcom("report")["result"].endswith(f"; failed: {failed}")


def test_a_row_that_the_provider_rejects_is_named_and_the_others_are_kept(run_dag, llm, storage):
    llm.fail(400)
    answer(llm, "positive", "positive")
    run = run_dag("batch_inference", {"reviews": ["One.", "Two.", "Three."]})

    assert_one_row_is_named_and_the_others_are_kept(run, storage)
    assert len(chat_requests(llm)) == 3


def test_a_row_whose_answers_stay_invalid_is_named_after_its_retries(run_dag, llm, storage):
    wrong = {"sentiment": "mixed", "summary": "A mixed review."}
    llm.call_tool("final_result", wrong, times=2)  # the first row's first try: the answer, and once asked again
    answer(llm, "positive", "positive")
    llm.call_tool("final_result", wrong, times=None)
    run = run_dag("batch_inference", {"reviews": ["One.", "Two.", "Three."]})

    assert_one_row_is_named_and_the_others_are_kept(run, storage)
    assert run.task_instance("analyze", failing_row(run)).try_number == 4


@pytest.mark.one_stack
def test_an_empty_list_of_reviews_calls_no_model_and_still_reports(run_dag, llm, storage):
    run = run_dag("batch_inference", {"reviews": []})

    assert run.state == "success"
    assert llm.requests == []
    assert report_of(storage)["rows"] == []
    assert run.xcom("report")["result"] == "0 positive, 0 negative, 0 neutral"


@pytest.mark.parametrize("conf", [{"reviews": ["ok"] * 501}, {"reviews": [1]}, {"reviews": "one"}, {"limit": 0}])
def test_wrong_params_are_refused_before_the_run(run_dag, llm, conf):
    from airflow.providers.common.compat.sdk import ParamValidationError

    with pytest.raises(ParamValidationError, match=next(iter(conf))):
        run_dag("batch_inference", conf)
    assert llm.requests == []
