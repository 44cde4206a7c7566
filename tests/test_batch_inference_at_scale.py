"""The DAG `batch_inference_at_scale`: every row answered and paid once, whatever ends its tasks early."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from include.batch.chunks import SMALL_CHUNK_ROWS, write_chunks
from include.batch.rows import Row
from include.batch.run import share_out
from include.common.storage import name_on_storage, storage_path
from tests.conftest import KEY, dag_file, parse
from tests.scripted_model import CALL_USD, ScriptedServer
from tests.storages import on_storage

DAG = "batch_inference_at_scale"
SENTIMENTS = ("positive", "negative", "neutral")


@pytest.fixture
def batch(run_dag: Callable[..., Any], model: ScriptedServer, storage: Path) -> Callable[..., Any]:
    """Run the DAG over texts, or over a file of this name and content."""

    def run(
        texts: list[Any] | None = None,
        file: str = "rows.jsonl",
        content: bytes | None = None,
        dag_options: dict[str, Any] | None = None,
        **conf: Any,
    ) -> Any:
        storage.mkdir(exist_ok=True)
        if content is None:
            content = "".join(
                json.dumps({"name": f"r{n}", "text": t}) + "\n" for n, t in enumerate(texts or [])
            ).encode()
        (storage / file).write_bytes(content)
        conf = {"input": str(storage_path(file)), "text_column": "text", "id_column": "name", "limit": None} | conf
        return run_dag(DAG, {"output_format": "jsonl"} | conf, **(dag_options or {}))

    return run


def results(storage: Path, run: Any = None) -> list[dict[str, Any]]:
    name = "*" if run is None else name_on_storage(run.run.run_id)
    (file,) = storage.glob(f"batch_inference_at_scale/{name}/results.jsonl")
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def texts(count: int) -> list[str]:
    return [f"This is review {n}" for n in range(count)]


# Results


def test_each_row_gets_its_own_answer_in_the_order_of_the_input(batch, model, storage):
    run = batch(texts(120))

    assert run.state == "success"
    rows = results(storage)
    assert [row["row"] for row in rows] == list(range(1, 121))
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(120)]
    assert [row["answer"]["sentiment"] for row in rows] == [SENTIMENTS[n % 3] for n in range(120)]
    assert set(model.calls().values()) == {1}
    report = json.loads(next(storage.glob("batch_inference_at_scale/*/report.json")).read_text())
    assert report["outcome"] == {"answered": 120}
    assert report["values"]["sentiment"] == dict.fromkeys(SENTIMENTS, 40)
    assert report["cost_usd"] == pytest.approx(120 * CALL_USD)
    assert run.xcom("report")["result"] == f"120 rows: 120 answered, ${120 * CALL_USD:.4f}"
    (chart,) = storage.glob("batch_inference_at_scale/*/sentiment.svg")
    assert ElementTree.fromstring(chart.read_bytes()).tag.endswith("svg")  # noqa: S314


def test_progress_is_in_the_names_of_the_tasks_and_usage_in_their_xcoms(batch):
    run = batch(texts(20))

    names = {run.task_instance("answer", n).rendered_map_index for n in range(2)}
    assert names == {f"10 of 10 rows, ${10 * CALL_USD:.4f}"}
    assert run.xcom("answer", "llm_usage", map_index=0)["requests"] == 10


@pytest.mark.one_stack  # reading and writing files of rows
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@on_storage("s3")
def test_csv_json_lines_and_parquet_give_the_same_results(batch, storage, form, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"name": f"r{n}", "text": f'Ünï, "quoted"\nreview {n}', "more": n} for n in range(12)]
    file = tmp_path / f"rows.{form}"
    if form == "csv":
        with file.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif form == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), file)
    batch(file=file.name, content=file.read_bytes(), output_format="parquet")

    (found,) = storage.glob("batch_inference_at_scale/*/results.parquet")
    table = parquet.read_table(io.BytesIO(found.read_bytes())).to_pylist()
    assert [(row["row"], row["id"], row["answer"]["sentiment"]) for row in table] == [
        (n + 1, f"r{n}", SENTIMENTS[n % 3]) for n in range(12)
    ]


@pytest.mark.one_stack
def test_the_xcoms_stay_small_however_many_rows_there_are(batch):
    run = batch(texts(600))

    assert run.state == "success"
    assert len(json.dumps(run.xcom("plan"))) < 100
    assert len(json.dumps(run.xcom("report"))) < 1000


@pytest.mark.one_stack  # reading and writing files of rows
@on_storage("disk", "s3")
def test_a_character_that_ends_lines_elsewhere_is_an_ordinary_one_in_a_row(batch, model, storage):
    odd = [f"one line{sign}of a row 1" for sign in "\u2028\u2029\x85\v\f\x1c\r"]
    rows = [{"name": text, "text": text} for text in odd]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    first, second = (batch(content=content, batch="odd") for _ in range(2))

    assert (first.state, second.state) == ("success", "success")
    for run in (first, second):
        assert [(row["id"], row["answer"]["sentiment"]) for row in results(storage, run)] == [
            (text, SENTIMENTS[1]) for text in odd
        ]
    assert set(model.calls().values()) == {1}, "what was paid for is not forgotten"


@pytest.mark.one_stack
@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
def test_half_characters_in_a_row_and_its_id_are_replaced_and_it_is_answered(batch, model, storage, output_format):
    lines = [{"name": f"r{n} \ud83d", "text": f"review {n} \ude9a, pair \ud83d\ude9a"} for n in range(3)]
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    run = batch(content=content, output_format=output_format)

    assert run.state == "success"
    assert set(model.calls()) == {f"review {n} \ufffd, pair \U0001f69a" for n in range(3)}
    if output_format == "jsonl":
        assert [(row["id"], row["error"]) for row in results(storage, run)] == [(f"r{n} \ufffd", "") for n in range(3)]


# Rows that fail


@pytest.mark.one_stack
def test_a_row_that_fails_keeps_its_number_and_reason_and_loses_no_other(batch, model, storage):
    bad = {
        3: ("REFUSE 3", "refused"),
        4: ("TOOLONG 4", "too long"),
        5: ("NONSENSE 5", "invalid answer"),
        6: ("  ", "empty"),
        7: (7, "not a text"),
        8: (None, "not a text"),
        9: ("x" * 200_001, "too long"),
    }
    run = batch([bad[n][0] if n in bad else f"review {n}" for n in range(20)], allowed_failures=0.4)

    assert run.state == "success"
    rows = results(storage)
    assert {row["row"] - 1: row["error_class"] for row in rows if row["error_class"]} == {
        n: expected for n, (_, expected) in bad.items()
    }
    assert all(row["error"] and row["answer"] is None for row in rows if row["error_class"])
    assert sum(row["answer"] is not None for row in rows) == 13
    assert model.calls()["NONSENSE 5"] == 2, "an answer of the wrong form is asked for once more"
    assert "3 too long" not in run.xcom("report")["result"]
    assert "2 too long" in run.xcom("report")["result"]


@pytest.mark.one_stack
def test_more_failures_than_are_allowed_fail_the_run_and_keep_the_results(batch, storage, logged):
    run = batch(["REFUSE 1", *texts(9)], allowed_failures=0.05)

    assert run.state == "failed"
    assert "1 of 10 rows are without an answer, more than the allowed share of 0.05" in logged()
    assert len(results(storage)) == 10


@pytest.mark.one_stack  # reading and writing files of rows
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rows.csv", b"", "is empty"),
        ("rows.csv", b"name,text\n", "has no rows"),
        ("rows.csv", b"name,body\na,b\n", "has no column 'text'. It has: 'name', 'body'"),
        ("rows.csv", b"text\nhello\n", "has no column 'name'"),
        ("rows.csv", b"name,text,text\na,b,c\n", "has the column 'text' twice"),
        ("rows.csv", b"PK\x03\x04\x00\x00binary", "line 1, holds a NUL byte: it is UTF-16"),
        ("rows.csv", b"name,text\na,\xff\xfe\n", "line 2, byte 3, is not UTF-8"),
        ("rows.csv", b'name,text\na,"never closed\n' + b"b,c\n" * 400_000, "is not valid CSV"),
        ("rows.jsonl", b"", "has no rows"),
        ("rows.jsonl", b"name,text\na,b\n", "is not JSON lines: line 1 is not JSON"),
        ("rows.jsonl", b'["a"]\n', "line 1 is not a JSON object"),
        ("rows.jsonl", b'{"text": "' + b"x" * 1_000_001, "line 1, is longer than"),
        ("rows.parquet", b"no parquet", "is not a Parquet file that can be read"),
        ("rows.xlsx", b"PK", r"its name must end in .csv, .jsonl, .parquet"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_named_before_anything_is_paid(
    batch, model, logged, file, content, message
):
    run = batch(file=file, content=content)

    assert run.state == "failed"
    assert run.states()["plan"] == "failed"
    assert run.task_instance("plan").try_number == 1, "no retry mends a file"
    log = logged()
    assert message in log
    assert file in log
    assert "There is nothing to report" in log
    assert model.seen() == []


@pytest.mark.one_stack  # reading and writing files of rows
def test_a_file_elsewhere_or_nowhere_is_refused(batch, run_dag, model, storage, logged):
    run = run_dag(DAG, {"input": "file:///etc/passwd"})
    assert run.state == "failed"
    run = run_dag(DAG, {"input": str(storage_path("no.csv"))})
    assert run.state == "failed"
    log = logged()
    assert "'file:///etc/passwd' is not a file on this project's storage" in log
    assert "There is no file" in log


@pytest.mark.one_stack
def test_lines_of_the_wrong_shape_are_rows_that_failed(batch, storage):
    run = batch(file="rows.csv", content=b"name,text\na,one 1\nb\nc,two 2,more\nd,three 3\n", allowed_failures=1)

    assert run.state == "success"
    assert [row["error"] for row in results(storage)] == [
        "",
        "line 3 has 1 fields, the header 2",
        "line 4 has 3 fields, the header 2",
        "",
    ]


# Money


@pytest.mark.one_stack
def test_a_budget_ends_the_run_before_it_costs_more_and_a_second_run_goes_on(batch, model, logged):
    budget = 50 * CALL_USD
    first = batch(texts(200), batch="labels", budget_usd=budget)

    assert first.state == "failed"
    assert "The budget of this task's rows" in logged()
    paid = len(model.seen())
    assert 0 < paid * CALL_USD <= budget + 2 * 32 * CALL_USD, "at most the calls in flight are above it"
    second = batch(texts(200), batch="labels", budget_usd=1.0)
    assert second.state == "success"
    assert set(model.calls().values()) == {1}
    assert len(model.seen()) == 200


@pytest.mark.one_stack  # reading and writing files of rows
def test_a_budget_without_a_known_price_is_refused_before_anything_is_paid(batch, model, monkeypatch, logged):
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model.connection(usd_per_million_tokens=None))
    run = batch(texts(3), budget_usd=1.0)

    assert run.state == "failed"
    assert "the price of 'openai-chat:scripted' is not known" in logged()
    assert model.seen() == []


@pytest.mark.one_stack
def test_runs_share_results_only_if_they_name_the_same_batch(batch, model):
    batch(texts(10), batch="a")
    batch(texts(10), batch="a")
    assert len(model.seen()) == 10
    batch(texts(10), batch="b")
    batch(texts(10))
    assert len(model.seen()) == 30


@on_storage("s3")
def test_a_cleared_run_pays_for_nothing_again_and_reports_the_same(batch, model, storage):
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    first, second = (batch(texts(30), dag_options={"logical_date": moment, "run_after": moment}) for _ in range(2))

    assert first.run.run_id == second.run.run_id
    assert second.xcom("report")["result"].startswith("30 rows: 30 answered")
    assert len(model.seen()) == 30


# Shares


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 9, 25, 999, 1001, 1200, 3050, 12_345])
def test_every_row_is_in_one_share_and_the_shares_are_of_much_the_same_size(storage, rows, tasks):
    texts = [Row(n, str(n), "") for n in range(rows)]
    sizes = [size for _, size in write_chunks(texts, "", storage_path("rows"), tasks)]
    shares = share_out(sizes, tasks)

    assert [n for share in shares for n in range(*share)] == list(range(len(sizes)))
    assert sum(sizes) == rows
    assert len(shares) <= tasks
    shared = [sum(sizes[slice(*share)]) for share in shares]
    assert max(shared) <= rows / tasks + max(SMALL_CHUNK_ROWS, rows / 20)


# Room for others


def test_a_batch_starts_however_small_the_pool_of_model_calls_is_and_leaves_its_slots_to_others():
    for task in parse(dag_file(DAG)).dags[DAG].tasks:
        partial = getattr(task, "partial_kwargs", {"pool": task.pool, "pool_slots": task.pool_slots})
        assert partial["pool"] == "default_pool", "which every Airflow has"
        assert partial.get("pool_slots", 1) == 1


# Logs


def test_the_prompts_and_the_key_are_in_no_log(batch, logged):
    batch(["a text that nobody may read 1", "REFUSE a text that nobody may read 2"])

    log = logged()
    assert "2 of 2 rows" in log
    assert "nobody may read" not in log
    assert KEY not in log
