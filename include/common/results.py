"""What a run leaves for people: files in its own folder, `<storage>/<DAG>/<run>/`, where the page GenAI finds them."""

from __future__ import annotations

import json
from datetime import UTC
from typing import TYPE_CHECKING

from airflow.sdk import get_current_context

from include.common.markdown import as_markdown_line
from include.common.storage import artifact_path, name_on_storage, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


def run_folder() -> ObjectStoragePath:
    """Return the folder of the current run."""
    context = get_current_context()
    return artifact_path(name_on_storage(context["ti"].dag_id), context["run_id"], "")


def publish(name: str, content: object) -> str:
    """Write a file of the current run, and return its URL.

    :param content: text or bytes; anything else is written as JSON.
    """
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content, indent=2, ensure_ascii=False)
    return write_artifact(run_folder() / name, content)


def report(title: str, *parts: str, asked: str = "") -> str:
    """Return a report in Markdown: its title; its day, DAG, run and model; and its parts.

    :param title: a text, which may be from outside; the parts are Markdown.
    :param asked: the task that asked the model, if any.
    """
    context = get_current_context()
    usage = context["ti"].xcom_pull(task_ids=asked, key="llm_usage") if asked else None
    first = next(iter(usage), None) if isinstance(usage, list) else usage
    day = context["dag_run"].run_after.astimezone(UTC).date()
    about = [str(day), context["ti"].dag_id, context["run_id"], *([first["model"]] if first else [])]
    head = [f"# {as_markdown_line(title)}", " · ".join(f"`{each}`" for each in about)]
    return "\n\n".join([*head, *(part.strip("\n") for part in parts)]) + "\n"
