"""The results of a batch as a file: JSON lines or Parquet, chunk by chunk, so that memory does not grow with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from include.batch.chunks import Result
from include.common.json_lines import json_line

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import BaseModel

COLUMNS = ("row", "id", "answer", "error", "error_class")

Write = Callable[[Sequence[Result]], None]


@contextmanager
def results_writer(suffix: str, output_type: type[BaseModel], file: IO[bytes]) -> Iterator[Write]:
    """A function that appends results to the file, with the columns COLUMNS; `answer` is an object.

    :param suffix: .jsonl or .parquet.
    """
    if suffix == ".jsonl":
        yield lambda results: _write_lines(results, file)
        return
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema(output_type)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        yield lambda results: writer.write_table(
            pa.Table.from_pylist([_flat(each, schema) for each in results], schema)
        )


def _write_lines(results: Sequence[Result], file: IO[bytes]) -> None:
    for result in results:
        file.write(json_line({name: getattr(result, name) for name in COLUMNS}))


def _schema(output_type: type[BaseModel]) -> pa.Schema:
    """Numbers and booleans of the answer keep their type; all else is text, which is JSON unless it was text before."""
    import pyarrow as pa

    plain: dict[Any, Any] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    answer = [pa.field(name, plain.get(f.annotation, pa.string())) for name, f in output_type.model_fields.items()]
    columns = dict.fromkeys(COLUMNS, pa.string()) | {"row": pa.int64(), "answer": pa.struct(answer)}
    return pa.schema(list(columns.items()))


def _flat(result: Result, schema: pa.Schema) -> dict[str, Any]:
    import pyarrow as pa

    row = {name: getattr(result, name) for name in COLUMNS}
    if result.answer:
        texts = {field.name for field in schema.field("answer").type if pa.types.is_string(field.type)}
        row["answer"] = {name: _text(v) if name in texts else v for name, v in result.answer.items()}
    return row


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
