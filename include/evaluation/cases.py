"""Cases: what a task is asked, and what a good answer is, as JSON lines.

{"input": "You charged us twice.", "expected": {"category": "billing"}, "tags": ["hard"]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from include.common.json_lines import read_json, read_lines

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

LONGEST_LINE = 1_000_000


class Case(BaseModel):
    """A labelled input. What `input` and `expected` hold depends on the subject; `tags` say what is special."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    input: str | dict[str, Any] = Field(min_length=1)
    expected: dict[str, Any] = Field(min_length=1)
    tags: list[str] = []

    @property
    def key(self) -> str:
        """The same in every version of the file. A case with another label is another case."""
        text = json.dumps([self.input, self.expected], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_cases(file: Path | ObjectStoragePath, fields: Sequence[str] = ()) -> list[Case]:
    """Read all cases of a file.

    :param fields: what `expected` must have.
    :raises AirflowFailException: a line is not a case, or two have the same input. The message names file, line, field.
    """
    cases: list[Case] = []
    lines: dict[str, int] = {}  # by input
    try:
        with file.open("rb") as content:
            for number, line in read_lines(content, LONGEST_LINE):
                case = _read(f"{file}, line {number}", line, fields)
                if (first := lines.setdefault(json.dumps(case.input, sort_keys=True), number)) != number:
                    raise AirflowFailException(f"{file}, line {number}: input: the same as in line {first}.")
                cases.append(case)
    except FileNotFoundError:
        raise AirflowFailException(f"There is no file {file} with cases.") from None
    if not cases:
        raise AirflowFailException(f"{file} has no cases.")
    return cases


def some(cases: list[Case], limit: int | None) -> list[Case]:
    """Return `limit` of the cases, evenly from all; None for all."""
    size = min(limit or len(cases), len(cases))
    return [cases[(2 * n + 1) * len(cases) // (2 * size)] for n in range(size)]


def as_text(value: Any) -> str:
    """Return an input or an answer as text: what is not text is written as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(where: str, line: bytes | None, fields: Sequence[str]) -> Case:
    if line is None:
        raise AirflowFailException(f"{where}: it is longer than {LONGEST_LINE:,} bytes.")
    try:
        case = Case.model_validate(read_json(line))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'line'}: {each['msg']}" for each in error.errors()]
        raise AirflowFailException(f"{where}: {'; '.join(problems)}.") from None
    except ValueError as error:
        raise AirflowFailException(f"{where}: not valid JSON: {error}.") from None
    if missing := [field for field in fields if field not in case.expected]:
        raise AirflowFailException(f"{where}: expected.{missing[0]}: it is missing.")
    return case
