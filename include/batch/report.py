"""The report of a batch: its results in the order of the input, counts, and a chart for each field with few values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Literal, get_args, get_origin

from airflow.providers.common.compat.sdk import AirflowFailException

from include.batch.rows import Result, RowsRun
from include.common.charts import bar_chart
from include.common.json_lines import json_line
from include.common.storage import write_artifact
from include.common.stored_files import new_artifact
from include.common.text import whole_characters

if TYPE_CHECKING:
    import pyarrow as pa
    from airflow.sdk import ObjectStoragePath
    from pydantic import BaseModel

COLUMNS = ("row", "id", "answer", "error", "error_class")


def write_report(
    run: RowsRun, folder: ObjectStoragePath, parts: Iterable[Sequence[Result]], advice: str
) -> dict[str, str]:
    """Write the results, counts and charts of a run into the folder.

    Return `{"artifacts": URL, "results": URL, "result": summary}`.

    :param run: its params `output_format` and `allowed_failures` say how, and how many rows may be without an answer.
    :param parts: the results in the order of the input, of which one part at a time is in memory.
    :param advice: what to do if more rows are without an answer.
    :raises AirflowFailException: more rows are without an answer than is allowed.
    """
    path = folder / f"results.{run.params['output_format']}"
    outcome: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    cost: float | None = 0.0
    values = {name: Counter(dict.fromkeys(few, 0)) for name, few in _few_values(run.output_type).items()}
    with new_artifact(path) as file, results_writer(path.suffix, run.output_type, file) as write:
        for part in parts:
            write(part)
            for result in part:
                outcome[result.error_class or "answered"] += 1
                for name in ("calls", "input_tokens", "output_tokens"):
                    totals[name] += getattr(result, name)
                cost = None if cost is None or result.cost_usd is None else cost + result.cost_usd
                if result.answer:
                    for name, counts in values.items():
                        counts[str(result.answer[name])] += 1
    rows, failed = outcome.total(), outcome.total() - outcome["answered"]
    counted = {"rows": rows, "outcome": outcome, **totals, "cost_usd": cost, "values": values}
    write_artifact(folder / "report.json", json.dumps(counted, indent=2))
    for name, counts in values.items():
        title = f"{name} of {outcome['answered']} rows"
        write_artifact(folder / f"{name}.svg", bar_chart(title, "rows", {"rows": counts}))
    said = [f"{number:,} {name}" for name, number in outcome.most_common()]
    said.append("cost unknown" if cost is None else f"${cost:.4f}")
    summary = f"{rows:,} rows: {', '.join(said)}"
    allowed = run.params["allowed_failures"]
    if failed > allowed * rows:
        raise AirflowFailException(
            f"{failed} of {rows} rows are without an answer, more than the allowed share of {allowed:g}: {summary}. "
            f"The results, with the reason for each, are in {path}. {advice}"
        )
    return {"artifacts": str(folder), "results": str(path), "result": summary}


def _few_values(output_type: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Return the fields that are one of a few values (`Literal`), with these values."""
    fields = output_type.model_fields.items()
    return {name: get_args(field.annotation) for name, field in fields if get_origin(field.annotation) is Literal}


@contextmanager
def results_writer(
    suffix: str, output_type: type[BaseModel], file: IO[bytes]
) -> Iterator[Callable[[Sequence[Result]], None]]:
    """Yield a function that appends results to the file, with the columns COLUMNS; `answer` is an object.

    :param suffix: .jsonl or .parquet.
    """
    if suffix == ".jsonl":
        yield lambda results: file.writelines(json_line({name: getattr(r, name) for name in COLUMNS}) for r in results)
        return
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema(output_type)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        yield lambda results: writer.write_table(
            pa.Table.from_pylist([_flat(each, schema) for each in results], schema)
        )


def _schema(output_type: type[BaseModel]) -> pa.Schema:
    """Keep numbers and booleans of the answer. Everything else becomes text: JSON, unless it is text already."""
    import pyarrow as pa

    plain: dict[Any, Any] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    answer = [pa.field(name, plain.get(f.annotation, pa.string())) for name, f in output_type.model_fields.items()]
    columns = dict.fromkeys(COLUMNS, pa.string()) | {"row": pa.int64(), "answer": pa.struct(answer)}
    return pa.schema(list(columns.items()))


def _flat(result: Result, schema: pa.Schema) -> dict[str, Any]:
    """Return a row of the table. A value that its column cannot hold, such as an 80-bit integer, is in `error`."""
    import pyarrow as pa

    row = {name: _text(value) if isinstance(value := getattr(result, name), str) else value for name in COLUMNS}
    if not result.answer:
        return row
    row["answer"] = answer = {}
    for field in schema.field("answer").type:
        value = result.answer.get(field.name)
        value = _text(value) if pa.types.is_string(field.type) else value
        try:
            pa.scalar(value, field.type)
            answer[field.name] = value
        except (pa.ArrowException, OverflowError):
            row["error"] = "; ".join(filter(None, (row["error"], f"{field.name} does not fit its column: {value}")))
    return row


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return whole_characters(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
