"""Say what a backfill or a file of rows would cost, before anything is asked.

make price DAG=feedback_intake FROM=2026-11-01 TO=2026-11-30    the mean of its runs so far, times the runs to come
make price DAG=batch_inference_at_scale FILE=rows.csv           its rows that are not answered yet (in BATCH=...)
"""

from __future__ import annotations

import argparse
import runpy
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from local.arguments import day
from local.dags import wanted_dags
from local.environment import DEFAULT_HOME, enter
from local.processes import StackError
from local.stack import Stack

# The ledger's days that say what a run costs.
DAYS = 30


def price_of_runs(stack: Stack, dag_id: str, first: date, last: date) -> str:
    """Say what the runs of these days would cost that are not there yet, by the mean of the DAG's runs in the ledger.

    :raises StackError: the stack does not run, or the DAG cannot be backfilled.
    """
    from include.common.prices import shown_usd
    from include.spend.reading import only, read_days

    if not stack.attach():
        raise StackError("Airflow says which runs there would be: start it first (make start).")
    stack.api.log_in()
    try:
        dates = stack.api.backfill_dates(dag_id, first.isoformat(), last.isoformat())
    except httpx.HTTPStatusError as error:
        raise StackError(f"Airflow does not backfill {dag_id!r}: {error.response.text[:500]}") from None
    today = datetime.now(UTC).date()
    lines = only(read_days(today - timedelta(DAYS), today).rows, dag_id={dag_id}).to_pylist()
    runs = len({line["run_id"] for line in lines})
    said = f"{dag_id}: {len(dates)} runs from {first} to {last} are not there yet."
    if not runs:
        return f"{said} What one costs is not known: the ledger has no run of the last {DAYS} days. Run it once."
    calls, saved, unpriced = (sum(line[name] for line in lines) for name in ("calls", "reused", "unpriced"))
    tokens = sum(line["input_tokens"] + line["output_tokens"] for line in lines)
    usd = sum(line["cost_usd"] for line in lines)
    share = len(dates) / runs
    cost = shown_usd(usd * share) + (" and what the calls without a known price cost" if unpriced else "")
    return (
        f"{said}\nThey would ask about {calls * share:,.0f} calls, {tokens * share:,.0f} tokens, {cost}: the mean of "
        f"the {runs} runs of the last {DAYS} days, in which {saved:,} calls were answered from the storage."
    )


def price_of_file(file: Path, dag_id: str, rows_file: str, batch: str, columns: tuple[str, str | None]) -> str:
    """Say what a run of a batch DAG over a file of rows would cost.

    :param file: the DAG's, which has `run` and TASKS, as that of batch_inference_at_scale.
    :raises StackError: it is not such a DAG.
    """
    from airflow.sdk.execution_time.context import set_current_context

    from include.batch.price import price_of_rows
    from include.batch.rows import read_rows
    from include.common.prices import shown_usd
    from include.common.storage import open_path

    module = runpy.run_path(str(file))
    if "run" not in module or "TASKS" not in module:
        raise StackError(f"{dag_id!r} has no rows to price: FILE=... is for DAGs such as batch_inference_at_scale.")
    context: Any = {"run_id": "price", "params": {"batch": batch or None, "budget_usd": None}}
    with set_current_context(context):
        run = module["run"]()
    price = price_of_rows(run, read_rows(open_path(f"file://{Path(rows_file).absolute()}"), *columns), module["TASKS"])
    cost = "a price that is not known" if price.cost_usd is None else shown_usd(price.cost_usd)
    return (
        f"{rows_file}: {price.rows:,} rows, {price.stored:,} of them need no call, {price.to_ask:,} are to be asked.\n"
        f"They take about {price.input_tokens:,} input and {price.output_tokens:,} output tokens ({price.basis}): "
        f"{cost}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="make price", description=__doc__.partition("\n")[0])
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    for name in ("dag", "file", "batch", "text", "id"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--first", type=day("FROM"))
    parser.add_argument("--last", type=day("TO"))
    arguments = parser.parse_args()
    home = arguments.home.absolute()
    enter(home)
    from airflow.providers.common.compat.sdk import AirflowException  # it reads its settings when it is imported

    try:
        if not arguments.dag:
            raise ValueError("Say which DAG.")
        ((dag_id, file),) = wanted_dags(arguments.dag, home / "airflow").items()
        if arguments.file:
            columns = (arguments.text or "review", arguments.id or None)
            print(price_of_file(file, dag_id, arguments.file, arguments.batch, columns))
        elif arguments.first and arguments.last:
            print(price_of_runs(Stack(home), dag_id, arguments.first, arguments.last))
        else:
            raise ValueError("Say FROM=... and TO=..., or FILE=...")
    except (ValueError, OSError, StackError, AirflowException) as error:
        sys.exit(f"{error} Such as: make price DAG=feedback_intake FROM=2026-11-01 TO=2026-11-30")


if __name__ == "__main__":
    main()
