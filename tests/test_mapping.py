"""The DAGs of `dags/mapping`: what they make of no items, bad items, and too many."""

from __future__ import annotations

import pytest

from include.common.mapping import chunked
from include.common.personal_data import mask_personal_data
from tests.conftest import chat_requests, embedding_requests

DEFAULTS = {
    "map_expand": "3 of 3 messages masked",
    "map_expand_kwargs": "2 of 2 answers graded, mean grade 0.62",
    "map_task_group": "Kestrel Fleet grows",
}


@pytest.mark.parametrize(("dag_id", "result"), DEFAULTS.items())
def test_with_its_defaults_it_reports_on_every_item(run_dag, storage, dag_id, result):
    run = run_dag(dag_id)

    assert run.state == "success"
    assert run.xcom("report")["result"].startswith(result)


EMPTY = [
    ("map_expand", {"messages": []}, "0 of 0 messages masked"),
    ("map_partial_expand", {"documents": []}, "0 of 0 documents summarized"),
    ("map_expand_kwargs", {"answers": [], "expected": []}, "0 of 0 answers graded"),
    ("map_task_group", {"companies": []}, "no companies"),
    ("map_chunks", {"rows": 0}, "0 tickets sorted by 0 tasks"),
]


@pytest.mark.parametrize(("dag_id", "conf", "result"), EMPTY)
def test_without_items_the_report_is_made_all_the_same(run_dag, llm, dag_id, conf, result):
    run = run_dag(dag_id, conf)

    assert run.state == "success"
    assert run.xcom("report")["result"] == result
    assert llm.requests == []


FAILING = [
    ("map_expand", {"messages": ["Hello.", ""]}, "1 of 2 messages masked; failed: message 2"),
    (
        "map_expand_kwargs",
        {"answers": ["60 minutes", "No."], "expected": ["60 minutes", "?"]},
        "1 of 2 answers graded, mean grade 1.00; failed: pair 2",
    ),
    (
        "map_task_group",
        {"companies": ["Nobody & Sons", "Tretwald"]},
        "Tretwald shrinks (118.3 to 96.5 million EUR); failed: Nobody & Sons",
    ),
]


@pytest.mark.parametrize(("dag_id", "conf", "result"), FAILING)
def test_a_failing_item_is_named_and_the_others_are_kept(run_dag, storage, dag_id, conf, result):
    run = run_dag(dag_id, conf)

    assert run.state == "success"
    assert "failed" in run.states().values()
    assert run.xcom("report")["result"] == result


@pytest.mark.parametrize(
    ("dag_id", "conf"),
    [
        ("map_expand", {"messages": ["Hello."] * 1025}),
        ("map_expand_kwargs", {"answers": ["a"] * 1025, "expected": ["a"] * 1025}),
        ("map_chunks", {"rows": 1025, "chunk_size": 1}),
    ],
)
def test_more_items_than_airflow_maps_are_refused_with_the_way_out(run_dag, storage, logged, dag_id, conf):
    run = run_dag(dag_id, conf)
    log = logged()

    assert run.state == "failed"
    assert "1025 items are too many to make a task of each: [core] max_map_length is 1024." in log
    assert "map_chunks" in log
    assert "nothing to report" in log


def test_lists_that_do_not_pair_are_refused_with_both_lengths(run_dag, storage, logged):
    run = run_dag("map_expand_kwargs", {"answers": ["a", "b"], "expected": ["a"]})

    assert run.state == "failed"
    assert "2 answers do not pair with 1 expected ones" in logged()


def test_mapped_tasks_are_named_after_their_items_and_share_the_constant_argument(run_dag, llm):
    llm.reply("It is explained.", times=2)
    run = run_dag("map_partial_expand", {"audience": "a new dispatcher"})

    assert run.state == "success"
    names = [run.task_instance("summarize", n).rendered_map_index for n in range(2)]
    assert names == ["geofences.md", "refunds-and-returns.md"]
    for request in chat_requests(llm):
        assert "For a new dispatcher:" in str(request["messages"])
    assert run.xcom("report")["result"].startswith("2 of 2 documents summarized, such as: It is explained.")


def test_a_document_that_does_not_exist_fails_alone_and_lists_those_that_do(run_dag, llm, logged):
    llm.reply("What zones are.")
    run = run_dag("map_partial_expand", {"documents": ["../secrets.md", "geofences.md"]})

    assert run.state == "success"
    assert "1 of 2 documents summarized; failed: ../secrets.md" in run.xcom("report")["result"]
    assert "There is no document '../secrets.md'. There are: adding-and-removing-vehicles.md," in logged()


def test_many_rows_are_sorted_by_few_tasks_each_with_few_requests(run_dag, llm):
    run = run_dag("map_chunks", {"rows": 600, "chunk_size": 300})

    assert run.state == "success"
    assert [run.xcom("sort_tickets", map_index=n)["rows"] for n in range(2)] == [300, 300]
    assert run.xcom("report")["result"].startswith("600 tickets sorted by 2 tasks, ")
    assert len(embedding_requests(llm)) == 2 * (1 + 2)  # the labels, then 256 texts in a request
    names = [run.task_instance("sort_tickets", n).rendered_map_index for n in range(2)]
    assert names == ["rows 0 to 299", "rows 300 to 599"]


def test_chunks_hold_all_items_in_order():
    assert chunked([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert chunked([], 2) == []


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Call +49 (30) 123-45 67 today", "Call [phone] today"),
        ("write to a.b+c@mail.example.co.uk.", "write to [e-mail]."),
        ("write to 030/123456-0 instead", "write to [phone] instead"),
        ("31 vehicles, invoice 2025-114 of 2025-10-01", "31 vehicles, invoice 2025-114 of 2025-10-01"),
        ("", ""),
    ],
)
def test_personal_data_is_masked_by_its_form(text, masked):
    assert mask_personal_data(text) == masked
