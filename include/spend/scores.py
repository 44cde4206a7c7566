"""Scores: how good the answers of a model and a prompt were on cases with known answers. The page GenAI plots them.

A task that evaluates calls `record_score` for each value that it measured:

    record_score("answers of rag_pipeline", "grounded", 0.93, cases=60, model="gpt-6-luna",
                 fingerprint=fingerprint(ANSWER_PROMPT, Answer.model_json_schema()))

Each is a small file at `<storage>/scores/<DAG>/<day of the run>~<id>.json`. It holds no prompt and no answer.
"""

from __future__ import annotations

from collections.abc import Set
from datetime import UTC, date, datetime
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from include.common.fingerprint import fingerprint as fingerprint_of
from include.common.shown import LONGEST_NAME, shown_text
from include.common.storage import name_on_storage, storage_path, write_artifact
from include.common.task_context import task_context

FOLDER = "scores"
# At most this many scores are read, the newest.
MOST_SCORES = 1000


class Score(BaseModel):
    """A measured value. `low` and `high` are the bounds of its confidence interval."""

    model_config = ConfigDict(allow_inf_nan=False)

    dag_id: str
    run_id: str
    at: datetime
    subject: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    cases: NonNegativeInt
    model: str
    fingerprint: str


class Scores(NamedTuple):
    """Scores, the oldest first, and how many more could not be read."""

    scores: list[Score]
    unreadable: int


def record_score(
    subject: str,
    metric: str,
    value: float,
    *,
    cases: int,
    model: str,
    fingerprint: str,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Record what an evaluation measured, for the current run; outside a task, do nothing.

    A run has one score for each subject, metric, model and fingerprint: a retry overwrites it.

    :param subject: what was measured, the same at every run, such as `answers of rag_pipeline`.
    :param metric: the name of the measure, such as `recall@3`; values of one metric must be comparable.
    :param value: what was measured; higher is better.
    :param cases: the number of cases.
    :param model: the model's name.
    :param fingerprint: of the prompt or settings that were measured, by `include.common.fingerprint`.
    :param low: the lower end of the confidence interval, if there is one.
    :param high: its upper end.
    :raises ValueError: a value is not a finite number.
    :raises OSError: the storage cannot be written.
    """
    context = task_context()
    if context is None:
        return
    ti, at = context["ti"], context["dag_run"].run_after.astimezone(UTC)
    subject, metric, model = (shown_text(text, longest=LONGEST_NAME) for text in (subject, metric, model))
    score = Score(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        at=at,
        subject=subject,
        metric=metric,
        value=value,
        low=low,
        high=high,
        cases=cases,
        model=model,
        fingerprint=fingerprint,
    )
    name = f"{at.date()}~{fingerprint_of(ti.run_id, subject, metric, model, fingerprint)}.json"
    write_artifact(storage_path(FOLDER, name_on_storage(ti.dag_id), name), score.model_dump_json())


def read_scores(first: date, last: date, dag_ids: Set[str]) -> Scores:
    """Read the newest scores that runs of these DAGs recorded, from `first` to `last`.

    :raises OSError: the storage cannot be read.
    """
    root = storage_path(FOLDER)
    folders = {name_on_storage(dag_id) for dag_id in dag_ids}
    found: dict[str, str] = {}
    for path in root.fs.find(root.path):
        folder, name = path.split("/")[-2:]
        if folder in folders and name.endswith(".json") and str(first) <= name.partition("~")[0] <= str(last):
            found[path] = name
    paths = sorted(found, key=lambda path: found[path])[-MOST_SCORES:]
    scores, unreadable = [], 0
    # Not `cat`, which takes a path with a bracket as a pattern.
    for content in root.fs.cat_ranges(paths, None, None, on_error="return") if paths else []:
        if isinstance(content, Exception):
            raise content
        try:
            score = Score.model_validate_json(content)
        except ValidationError:
            unreadable += 1
        else:
            scores += [score] if score.dag_id in dag_ids else []
    return Scores(sorted(scores, key=lambda score: (score.at, score.run_id)), unreadable)
