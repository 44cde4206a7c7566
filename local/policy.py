"""The local stack's policy for DAGs, which Airflow finds as `airflow_local_settings` in its folder `config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def dag_policy(dag: Any) -> None:
    """Let one run of the stream read at a time.

    The embedded broker does not inform a run that another one reads. If both leave their consumer group at the same
    time, it may wait for one of them as the leader, and deliver nothing until it is restarted.
    """
    if dag.dag_id == "stream_inference":
        dag.max_active_runs = 1


def install_policy(airflow_home: Path) -> None:
    """Install the policy for the Airflow with this home."""
    folder = airflow_home / "config"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "airflow_local_settings.py").write_text(f"from {__name__} import {dag_policy.__name__}\n")
