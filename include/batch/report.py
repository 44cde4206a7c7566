"""What a batch came to: the results in the order of the input, the counts, a chart for each field with few values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Literal, get_args, get_origin

from airflow.providers.common.compat.sdk import AirflowFailException

from include.batch.rows import Result
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


class Report:
    """The files that a batch leaves, and its outcome.

    :param folder: where the files go.
    :param output_type: the form of an answer.
    :param output_format: `parquet` or `jsonl`.
    """

    def __init__(self, folder: ObjectStoragePath, output_type: type[BaseModel], output_format: str) -> None:
        self._folder = folder
        self._output_type = output_type
        self._results = folder / f"results.{output_format}"
        self._outcome: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._cost: float | None = 0.0
        self._values = {name: Counter(dict.fromkeys(few, 0)) for name, few in _few_values(output_type).items()}

    def write(self, parts: Iterable[Sequence[Result]]) -> None:
        """Write the files, holding one part of the results at a time."""
        with (
            new_artifact(self._results) as file,
            results_writer(self._results.suffix, self._output_type, file) as write,
        ):
            for part in parts:
                write(part)
                for result in part:
                    self._count(result)
        counted = {"rows": self._outcome.total(), "outcome": self._outcome, **self.used}
        write_artifact(self._folder / "report.json", json.dumps({**counted, "values": self._values}, indent=2))
        for name, counts in self._values.items():
            title = f"{name} of {self._outcome['answered']} rows"
            write_artifact(self._folder / f"{name}.svg", bar_chart(title, "rows", {"rows": counts}))

    @property
    def used(self) -> dict[str, Any]:
        """What the rows used: `calls`, `input_tokens`, `output_tokens` and `cost_usd`, which is None if not known."""
        return {**self._totals, "cost_usd": self._cost}

    def end(self, allowed_failures: float, advice: str) -> dict[str, str]:
        """Return `{"artifacts": URL, "results": URL, "result": summary}`.

        :param allowed_failures: share of the rows, from 0 to 1, that may be without an answer.
        :param advice: what to do if more are.
        :raises AirflowFailException: more rows are without an answer than is allowed.
        """
        rows, failed = self._outcome.total(), self._outcome.total() - self._outcome["answered"]
        parts = [f"{count:,} {name}" for name, count in self._outcome.most_common()]
        parts.append("cost unknown" if self._cost is None else f"${self._cost:.4f}")
        summary = f"{rows:,} rows: {', '.join(parts)}"
        if failed > allowed_failures * rows:
            raise AirflowFailException(
                f"{failed} of {rows} rows are without an answer, more than the allowed share of "
                f"{allowed_failures:g}: {summary}. The results, with the reason for each, are in {self._results}. "
                f"{advice}"
            )
        return {"artifacts": str(self._folder), "results": str(self._results), "result": summary}

    def _count(self, result: Result) -> None:
        self._outcome[result.error_class or "answered"] += 1
        for name in ("calls", "input_tokens", "output_tokens"):
            self._totals[name] += getattr(result, name)
        self._cost = None if None in (self._cost, result.cost_usd) else self._cost + result.cost_usd  # type: ignore[operator]
        for name, counts in self._values.items():
            if result.answer:
                counts[str(result.answer[name])] += 1


def _few_values(output_type: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Return the fields that have one of a few values, with these."""
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
    """Keep numbers and booleans of the answer; make all else text, which is JSON unless it was text before."""
    import pyarrow as pa

    plain: dict[Any, Any] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    answer = [pa.field(name, plain.get(f.annotation, pa.string())) for name, f in output_type.model_fields.items()]
    columns = dict.fromkeys(COLUMNS, pa.string()) | {"row": pa.int64(), "answer": pa.struct(answer)}
    return pa.schema(list(columns.items()))


def _flat(result: Result, schema: pa.Schema) -> dict[str, Any]:
    """Return the row of the table. What a column cannot hold, such as an integer of 80 bits, is named in `error`."""
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
