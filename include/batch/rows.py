"""The rows of a file and their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException

from include.batch.formats import Cells, Unreadable, csv_rows, json_rows, parquet_rows
from include.common.stored_files import input_file
from include.common.text import whole_characters

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from pydantic import BaseModel

# Longer texts are not sent to a model.
LONGEST_TEXT = 200_000
READERS = {".csv": csv_rows, ".jsonl": json_rows, ".parquet": parquet_rows}


class Row(NamedTuple):
    """A row to answer.

    :param number: its position in the input, from 1.
    :param id: its name in the input.
    :param text: what the model gets; None if there is nothing to ask, and `error` says why.
    """

    number: int
    id: str
    text: str | None
    error: str = ""
    error_class: str = ""


@dataclass(frozen=True)
class Result:
    """The result of a row: an answer, or an error and its class.

    :param input_tokens: of all calls for the row, like `output_tokens`, `calls` and `cost_usd` (US dollars; None if the
        price is not known).
    """

    row: int
    id: str
    answer: dict[str, Any] | None = None
    error: str = ""
    error_class: str = ""
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0


@dataclass(frozen=True)
class RowsRun:
    """A DAG run over a file of rows.

    :param params: the run's params; `input`, `text_column`, `id_column` and `limit` say which rows, `output_format` and
        `allowed_failures` how to report on them.
    :param default_input: the file to read if `input` is empty.
    :param system_prompt: what the model is to do with each row's text.
    :param output_type: the form of an answer.
    """

    run_id: str
    params: Mapping[str, Any]
    default_input: Path
    system_prompt: str
    output_type: type[BaseModel]

    def rows(self) -> Iterator[Row]:
        """Read the rows, see `read_rows`."""
        path = input_file(self.params["input"], self.default_input)
        return islice(read_rows(path, self.params["text_column"], self.params["id_column"]), self.params["limit"])


def read_rows(path: ObjectStoragePath, text_column: str, id_column: str | None) -> Iterator[Row]:
    """Read the rows of a .csv, .jsonl or .parquet file.

    A row that cannot be read has a reason instead of a text.

    :param id_column: the column with the rows' names. Without a column or a name, a row is called by its number.
    :raises AirflowFailException: the file is of another kind, has no rows, or lacks a column or has it twice; the
        message names the columns that it has.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise AirflowFailException(f"{path} is not read: its name must end in {', '.join(READERS)}.")
    columns = list(dict.fromkeys([text_column, id_column or text_column]))
    number = 0
    for number, cells in enumerate(read(path, columns), 1):
        yield _row(number, cells, text_column, id_column)
    if not number:
        raise AirflowFailException(f"{path} has no rows.")


def _row(number: int, cells: Cells, text_column: str, id_column: str | None) -> Row:
    if isinstance(cells, Unreadable):
        return Row(number, str(number), None, cells.reason, "unreadable")
    given, text = cells[id_column] if id_column else None, cells[text_column]
    name = str(number) if given in (None, "") or isinstance(given, Unreadable) else whole_characters(str(given))
    for cell in (text, given):
        if isinstance(cell, Unreadable):
            return Row(number, name, None, cell.reason, "unreadable")
    if not isinstance(text, str):
        what = "nothing" if text is None else f"a value of type {type(text).__name__}"
        return Row(number, name, None, f"column {text_column!r} holds {what}, not a text", "not a text")
    if not text.strip():
        return Row(number, name, None, f"column {text_column!r} is empty", "empty")
    if len(text) > LONGEST_TEXT:
        return Row(number, name, None, f"{len(text)} characters are more than {LONGEST_TEXT}", "too long")
    return Row(number, name, whole_characters(text))
