"""What the demo shows of a DAG's run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

COLOURS = {"success": "green", "skipped": "yellow", "failed": "red", "upstream_failed": "red"}


@dataclass
class Result:
    """What a DAG's run produced, or why there was none; `.local/demo.json` is a list of these.

    For a file that cannot be imported and belongs to none of the wanted DAGs, its path stands in place of the DAG id.
    """

    dag_id: str
    state: str
    seconds: float = 0.0
    tasks: int = 0
    tokens: int = 0
    cost_usd: float | None = 0.0
    result: str = ""

    def add_usage(self, usage: dict[str, Any]) -> None:
        """Add the XCom `llm_usage` of a task. One unknown price makes the cost None."""
        self.tokens += usage["input_tokens"] + usage["output_tokens"]
        known = self.cost_usd is not None and usage["cost_usd"] is not None
        self.cost_usd = self.cost_usd + usage["cost_usd"] if known else None


def one_line(values: list[Any]) -> str:
    """Return a run's result, given what its tasks returned: all values of `result`, or else the last dict."""
    found = [value for value in values if isinstance(value, dict)]
    named = [str(value["result"]) for value in found if "result" in value]
    text = "; ".join(named) or (json.dumps(found[-1], ensure_ascii=False) if found else "")
    return " ".join(text.split())


def name_of(task: dict[str, Any]) -> str:
    if task["map_index"] < 0:
        return str(task["task_id"])
    return f"{task['task_id']}[{task['rendered_map_index'] or task['map_index']}]"


def seconds_of(task: dict[str, Any]) -> float:
    """Return how long a task ran, by its dates: on SQLite, Airflow's `duration` is twice as long, or negative."""
    start, end = (datetime.fromisoformat(task[name]) for name in ("start_date", "end_date"))
    return (end - start).total_seconds()


def table_of(results: list[Result]) -> Table:
    """Return a line per DAG: the result, cut to the width of the console, or the whole reason of a failure."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("pattern", overflow="fold", max_width=32)
    table.add_column("state", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("result", overflow="fold", ratio=1)
    for each in results:
        done = each.state == "success"
        table.add_row(
            escape(each.dag_id),
            f"[{COLOURS.get(each.state, 'red')}]{each.state}",
            f"{each.seconds:.0f}",
            cost_of(each),
            Text(each.result, no_wrap=done, overflow="ellipsis" if done else "fold"),
        )
    return table


def cost_of(result: Result) -> str:
    """Return US dollars; tokens if the price is unknown; nothing if no model was called."""
    if not result.tokens:
        return ""
    return f"{result.tokens:,} tokens" if result.cost_usd is None else f"${result.cost_usd:.4f}"


def totals_of(results: list[Result]) -> str:
    """Return a line with the sums over all runs."""
    done = sum(each.state == "success" for each in results)
    tasks, tokens = (sum(getattr(each, name) for each in results) for name in ("tasks", "tokens"))
    costs = [each.cost_usd for each in results]
    known = sum(cost for cost in costs if cost is not None)
    cost = f" They cost ${known:.4f}{', plus calls of unknown price' if None in costs else ''}." if known else ""
    return f"{done} of {len(results)} DAGs succeeded, with {tasks} tasks and {tokens:,} tokens.{cost}"
