"""What a batch came to: the results in the order of the input, the counts, a chart for each field with few values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from airflow.providers.common.compat.sdk import AirflowFailException

from include.batch.results import results_writer
from include.common.charts import bar_chart
from include.common.storage import new_artifact, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from pydantic import BaseModel

    from include.batch.chunks import Result


class BatchReport:
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
        counted = {"rows": self._outcome.total(), "outcome": self._outcome, **self._totals, "cost_usd": self._cost}
        write_artifact(self._folder / "report.json", json.dumps({**counted, "values": self._values}, indent=2))
        for name, counts in self._values.items():
            title = f"{name} of {self._outcome['answered']} rows"
            write_artifact(self._folder / f"{name}.svg", bar_chart(title, counts))

    def end(self, allowed_failures: float, advice: str) -> dict[str, Any]:
        """What the task that reports returns.

        :param allowed_failures: share of the rows that may be without an answer.
        :param advice: what to do if more are.
        :raises AirflowFailException: more rows are without an answer than is allowed.
        """
        rows, failed = self._outcome.total(), self._outcome.total() - self._outcome["answered"]
        parts = [f"{count:,} {name}" for name, count in self._outcome.most_common()]
        parts.append("cost unknown" if self._cost is None else f"${self._cost:.4f}")
        if lost := self._totals["lost_calls"]:
            parts.append(f"at most {lost} calls paid twice")
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
        for name in ("calls", "input_tokens", "output_tokens", "lost_calls"):
            self._totals[name] += getattr(result, name)
        self._cost = None if None in (self._cost, result.cost_usd) else self._cost + result.cost_usd  # type: ignore[operator]
        for name, counts in self._values.items():
            if result.answer:
                counts[str(result.answer[name])] += 1


def _few_values(output_type: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """The fields that have one of a few values, with these."""
    fields = output_type.model_fields.items()
    return {name: get_args(field.annotation) for name, field in fields if get_origin(field.annotation) is Literal}
