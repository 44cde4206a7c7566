"""What the model chose in a task of `@task.llm_branch`."""

from __future__ import annotations

from airflow.providers.standard.utils.skipmixin import XCOM_SKIPMIXIN_FOLLOWED, XCOM_SKIPMIXIN_KEY
from airflow.sdk import get_current_context


def chosen_branches(task_id: str) -> list[str]:
    """Return the ids of the tasks that the `@task.llm_branch` task `task_id` of this run chose."""
    decision = get_current_context()["ti"].xcom_pull(task_ids=task_id, key=XCOM_SKIPMIXIN_KEY)
    return list(decision[XCOM_SKIPMIXIN_FOLLOWED])
