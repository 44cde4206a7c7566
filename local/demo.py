"""Run every DAG on the local stack, through Airflow's REST API, and show what came out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from include.usage import USAGE_XCOM_KEY
from local.environment import PROJECT, user_environment, uses_embedded_queue
from local.processes import StackError, interrupt_on_signals
from local.reviewer import Reviewer
from local.send import SQS_DAG, send_to
from local.stack import Stack, stack_arguments

TAG = "genai"
MESSAGES = {"event_driven_inference": 2, "stream_inference": 8, SQS_DAG: 4}
PARSE_TIMEOUT_S = 90.0
RUN_TIMEOUT_S = 1200.0
ASSET_WAIT_S = 5.0
MESSAGE_WAIT_S = 60.0
POLL_S = 0.5
LOG_LINES = 20

ENDED = ("success", "failed")
WAITING = ("deferred", "awaiting_input")  # perhaps for a person, who is not there in the demo
COLOURS = {"success": "green", "skipped": "yellow", "failed": "red", "upstream_failed": "red"}


@dataclass
class Result:
    """What a pattern's run left behind; `.local/demo.json` is a list of these."""

    dag_id: str
    state: str
    seconds: float
    tasks: int
    tokens: int
    result: str


class Demo:
    """Triggers DAGs, follows their runs and collects what they leave.

    :param stack: the stack, whose API has no token yet.
    :param console: where progress goes.
    """

    def __init__(self, stack: Stack, console: Console) -> None:
        self.stack = stack
        self.api = stack.api
        self.console = console
        self._reviewer = Reviewer(stack.api)
        self._started = time.monotonic()
        self._reported: set[tuple[str, str, int]] = set()

    def say(self, text: str) -> None:
        """Print a line of progress, after the seconds since the start."""
        self.console.print(f"[dim]{time.monotonic() - self._started:4.0f} s[/dim]  {text}")

    def run(self, dag_ids: list[str]) -> list[Result]:
        """Run these DAGs side by side until all have ended.

        DAGs that wait for messages are sent some, through the broker or the queue. DAGs that wait for assets are left
        to the updates that the others make. Those that no update has started (as nothing has changed since the last
        demo) are then started by hand.

        :raises StackError: a DAG file cannot be imported, or something takes too long.
        """
        self._wait_until_parsed(set(dag_ids))
        since = datetime.now(UTC).isoformat()
        waiting = {dag_id for dag_id in dag_ids if self.api.waits_for_assets(dag_id)}
        messaged = waiting & MESSAGES.keys()
        if not uses_embedded_queue(user_environment()):
            messaged -= {SQS_DAG}
        self._send_messages(messaged)
        run_ids = self._trigger([dag_id for dag_id in dag_ids if dag_id not in waiting])
        deadline = time.monotonic() + RUN_TIMEOUT_S
        last_end = time.monotonic() if run_ids or messaged else 0.0
        open_runs = dict(run_ids)
        with self.console.status("") as status:
            while open_runs or waiting:
                if time.monotonic() > deadline:
                    late = ", ".join([*open_runs, *waiting])
                    raise StackError(f"still running after {RUN_TIMEOUT_S:.0f} s: {late}")
                ended = [d for d, run_id in open_runs.items() if self.api.run(d, run_id)["state"] in ENDED]
                at_work = [name for d, run_id in open_runs.items() for name in self._follow(d, run_id)]
                for dag_id in ended:
                    del open_runs[dag_id]
                    last_end = time.monotonic()
                started = self._started_by_assets(waiting, since)
                patience = MESSAGE_WAIT_S if waiting & messaged else ASSET_WAIT_S
                if not open_runs and not started and time.monotonic() > last_end + patience:
                    started = self._trigger(sorted(waiting))
                open_runs |= started
                run_ids |= started
                waiting -= started.keys()
                idle = f"waiting for the scheduler ({', '.join(open_runs)})"
                status.update(f"{time.monotonic() - self._started:.0f} s  {', '.join(at_work) or idle}")
                time.sleep(POLL_S)
        return [self._collect(dag_id, run_ids[dag_id]) for dag_id in dag_ids]

    def _send_messages(self, dag_ids: set[str]) -> None:
        for dag_id in sorted(dag_ids):
            ids = send_to(self.stack, dag_id, number=MESSAGES[dag_id], malformed=1)
            self.say(f"sent {len(ids)} messages, and a malformed one, to {dag_id}")

    def _trigger(self, dag_ids: list[str]) -> dict[str, str]:
        if dag_ids:
            self.say(f"triggered {', '.join(dag_ids)}")
        return {dag_id: self.api.trigger(dag_id) for dag_id in dag_ids}

    def _started_by_assets(self, dag_ids: set[str], since: str) -> dict[str, str]:
        started = {}
        for dag_id in sorted(dag_ids):
            if runs := self.api.runs_by_assets(dag_id, since):
                self.say(f"an asset was updated: {dag_id} starts")
                started[dag_id] = runs[-1]
        return started

    def _wait_until_parsed(self, wanted: set[str]) -> None:
        deadline = time.monotonic() + PARSE_TIMEOUT_S
        while missing := wanted - self.api.dag_ids(TAG):
            for file, trace in self.api.import_errors().items():
                raise StackError(f"{file} cannot be imported:\n{trace}")
            if time.monotonic() > deadline:
                raise StackError(f"not parsed after {PARSE_TIMEOUT_S:.0f} s: {', '.join(sorted(missing))}")
            time.sleep(POLL_S)

    def _follow(self, dag_id: str, run_id: str) -> list[str]:
        """Report each task that has ended since the last look; return the names of those at work."""
        at_work = []
        for task in self.api.task_instances(dag_id, run_id):
            key = (dag_id, task["task_id"], task["map_index"])
            name = f"{dag_id}.{_name(task)}"
            if task["state"] == "running":
                at_work.append(name)
            elif task["state"] in WAITING:
                for answer in self._reviewer.answer(dag_id, run_id):
                    self.say(escape(answer))
            elif task["state"] in COLOURS and key not in self._reported:
                self._reported.add(key)
                colour = COLOURS[task["state"]]
                seconds = f"[dim]{_seconds(task):.1f} s[/dim]" if task["start_date"] and task["end_date"] else ""
                self.say(f"[{colour}]{task['state']:8}[/{colour}] {escape(name)} {seconds}")
        return at_work

    def _collect(self, dag_id: str, run_id: str) -> Result:
        run = self.api.run(dag_id, run_id)
        tasks = self.api.task_instances(dag_id, run_id)
        result = Result(dag_id, run["state"], round(run["duration"] or 0, 1), len(tasks), 0, "")
        values = []
        for task in tasks:
            where = (dag_id, run_id, task["task_id"])
            if usage := self.api.xcom(*where, USAGE_XCOM_KEY, task["map_index"]):
                result.tokens += usage["input_tokens"] + usage["output_tokens"]
            values.append(self.api.xcom(*where, "return_value", task["map_index"]))
        result.result = _one_line(values) or ("nothing to do" if run["state"] == "success" else "")
        for task in tasks:
            if task["state"] == "failed":
                self._show_failure(dag_id, run_id, task)
                if run["state"] == "failed":
                    result.result = f"{_name(task)} failed"
        return result

    def _show_failure(self, dag_id: str, run_id: str, task: dict[str, Any]) -> None:
        lines = self.api.log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
        self.console.print(f"\n[red]{dag_id}.{escape(_name(task))} failed.[/red] The end of its log:")
        self.console.print("\n".join(f"    {line}" for line in lines[-LOG_LINES:]), markup=False)


def _one_line(values: list[Any]) -> str:
    """The result of a run, given what its tasks returned: what they call their result, or else the last answer."""
    found = [value for value in values if isinstance(value, dict)]
    named = [value["result"] for value in found if "result" in value]
    text = "; ".join(named) or (json.dumps(found[-1], ensure_ascii=False) if found else "")
    return " ".join(text.split())


def _name(task: dict[str, Any]) -> str:
    if task["map_index"] < 0:
        return str(task["task_id"])
    return f"{task['task_id']}[{task['rendered_map_index'] or task['map_index']}]"


def _seconds(task: dict[str, Any]) -> float:
    """How long a task ran. From its dates: on SQLite, Airflow's own `duration` is twice as long, or negative."""
    start, end = (datetime.fromisoformat(task[name]) for name in ("start_date", "end_date"))
    return (end - start).total_seconds()


def _table(results: list[Result]) -> Table:
    table = Table(show_lines=True)
    for heading in ("pattern", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("tasks", "seconds", "tokens"):
        table.add_column(heading, justify="right")
    table.add_column("result", ratio=1)
    for each in results:
        colour = COLOURS.get(each.state, "red")
        line = each.result if len(each.result) <= 240 else each.result[:240] + " ..."
        table.add_row(
            each.dag_id,
            f"[{colour}]{each.state}[/{colour}]",
            str(each.tasks),
            f"{each.seconds:.1f}",
            str(each.tokens),
            escape(line),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.demo", description=__doc__)
    dag_ids = [path.stem for path in sorted((PROJECT / "dags").rglob("*.py"))]
    parser.add_argument("--only", choices=dag_ids, action="append", help="run this DAG only; may be repeated")
    stack_arguments(parser)
    arguments = parser.parse_args()
    interrupt_on_signals()

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    stack = Stack(arguments.home, arguments.port)
    ours = False
    try:
        found = stack.attach()
        demo = Demo(stack, console)
        if found:
            demo.say(f"using the stack that runs at {stack.api.url}")
            stack.api.log_in()
        else:
            ours = True
            stack.start(demo.say)
        results = demo.run(arguments.only or dag_ids)
        demo.say(f"memory of the stack: {stack.processes.memory_mb():.0f} MB")
    except (StackError, httpx.HTTPError) as error:
        sys.exit(f"The demo cannot run: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    finally:
        if ours:
            console.print("[dim]stopping the stack[/dim]")
            stack.stop()

    report = stack.home / "demo.json"
    report.write_text(json.dumps([asdict(result) for result in results], indent=2, ensure_ascii=False))
    console.print(_table(results))
    console.print(f"The same as JSON: {report}   The files the DAGs wrote: {stack.home / 'artifacts'}")
    if any(result.state != "success" for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
