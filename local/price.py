"""Say what a backfill or a file of rows would cost, before any model is called.

make price DAG=asset_producer FROM=2026-11-01 TO=2026-11-30    the mean of its runs so far, times the missing runs
make price DAG=batch_inference_at_scale FILE=rows.csv           its rows that are not answered yet (in BATCH=...)
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import date
from pathlib import Path

import httpx

from local.arguments import day
from local.dags import wanted_dags
from local.environment import (
    CHAT_MODEL,
    DEFAULT_HOME,
    enter,
    model_connection,
    user_environment,
    uses_embedded_model,
)
from local.processes import StackError
from local.stack import Stack

NOWHERE = "http://127.0.0.1:1/v1"


def price_of_dates(stack: Stack, dag_id: str, first: date, last: date) -> str:
    """Say what the missing runs of these days would cost.

    :raises StackError: the stack does not run, or the DAG cannot be backfilled.
    """
    from include.spend.price import price_of_runs

    if first > last:
        raise StackError(f"FROM={first} is after TO={last}.")
    if not stack.attach():
        raise StackError("Only a running Airflow knows which runs are missing: start it first (make start).")
    stack.api.log_in()
    try:
        dates = stack.api.backfill_dates(dag_id, first.isoformat(), last.isoformat())
    except httpx.HTTPStatusError as error:
        raise StackError(f"Airflow cannot backfill {dag_id!r}: {error.response.text[:500]}") from None
    return price_of_runs(dag_id, len(dates), first, last)


def price_of_file(file: Path, rows_file: str, batch: str, columns: tuple[str, str | None]) -> str:
    """Say what a run of a batch DAG over a file of rows would cost.

    :param file: the DAG file.
    :param rows_file: anywhere on this machine.
    """
    from include.batch.price import price_of_batch
    from include.batch.rows import read_rows
    from include.common.stored_files import local_file

    return price_of_batch(file, {"batch": batch}, read_rows(local_file(Path(rows_file).absolute()), *columns))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make price", description=__doc__.partition("\n")[0])
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    # The columns are those that the params of batch_inference_at_scale name.
    for name, default in (("dag", ""), ("file", ""), ("batch", ""), ("text", "review"), ("id", "review_id")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--first", type=day("FROM"))
    parser.add_argument("--last", type=day("TO"))
    arguments = parser.parse_args()
    home = arguments.home.absolute()
    enter(home)
    if uses_embedded_model(user_environment()):  # it is not called, and need not run
        os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"] = model_connection(NOWHERE, f"openai-chat:{CHAT_MODEL}")
    from airflow.providers.common.compat.sdk import AirflowException  # it reads its settings when it is imported

    try:
        if not arguments.dag:
            raise ValueError("Say which DAG.")
        ((dag_id, file),) = wanted_dags(arguments.dag, home / "airflow").items()
        if arguments.file:
            columns = (arguments.text, arguments.id or None)
            print(price_of_file(file, arguments.file, arguments.batch, columns))
        elif arguments.first and arguments.last:
            print(price_of_dates(Stack(home), dag_id, arguments.first, arguments.last))
        else:
            raise ValueError("Say FROM=... and TO=..., or FILE=...")
    except (ValueError, OSError, StackError, AirflowException) as error:
        sys.exit(f"{error} Such as: make price DAG=asset_producer FROM=2026-11-01 TO=2026-11-30")


if __name__ == "__main__":
    main()
