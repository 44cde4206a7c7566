"""Run every DAG on the local stack, through Airflow's REST API, and show what came out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from local.dags import FOLDER, template_dags, wanted_dags
from local.demo_progress import Progress
from local.demo_result import Result, name_of, one_line, table_of, totals_of
from local.environment import PROJECT, user_environment, uses_embedded_queue
from local.paid import EMBEDDED_ALL_THE_SAME, PaidModelError, cost_notice, has_key_alone, use_embedded_model
from local.processes import StackError, interrupt_on_signals
from local.send import SQS_DAG, send_to
from local.stack import Stack, stack_arguments

# Params of the DAGs whose defaults would take more than a few minutes on a laptop.
CONF: dict[str, dict[str, Any]] = {
    "batch_api_inference": {"limit": 4},
    "batch_inference": {"limit": 6},
    "batch_inference_at_scale": {"limit": 12},
    "evaluate_prompts": {"subjects": ["sentiment"], "limit": 8},
    "fine_tuning": {"evaluation_size": 4},
    "map_chunks": {"rows": 200, "chunk_size": 100},
    "rag_evaluation": {"answers": 4, "min_recall": 0.8, "min_grounded": 0.0},
    "rag_pipeline": {"min_score": 0.2},
    "spend_report": {"day": datetime.now(UTC).date().isoformat()},
}
MESSAGES = {"event_driven_inference": 2, "stream_inference": 5, SQS_DAG: 3}
# The scheduler checks each open run again and again: with all of them open at once, that took half a core.
OPEN_RUNS = 8
# The folders of DAGs that call the model, and of those that report on the other DAGs.
ASKING, REPORTING = ("patterns",), ("messages", "operations")
PARSE_TIMEOUT_S = 90.0
RUN_TIMEOUT_S = 1200.0
ASSET_WAIT_S = 5.0
MESSAGE_WAIT_S = 60.0
# Each poll costs Airflow as much CPU as a small task does.
POLL_S = 2.0
LOG_LINES = 20

# The same as in include.ai.usage, whose import would take seconds: the demo is a client and does without Airflow.
USAGE_XCOM_KEY = "llm_usage"

ENDED = ("success", "failed")
NOT_IMPORTED = "import error"


class Demo:
    """Triggers DAGs, follows their runs and collects what they leave.

    :param stack: the stack, whose API has no token yet.
    :param console: where progress goes.
    """

    def __init__(self, stack: Stack, console: Console) -> None:
        self.stack = stack
        self.api = stack.api
        self.console = console
        self._progress = Progress(stack.api, self.say)
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line of progress, after the seconds since the start."""
        self.console.print(f"[dim]{time.monotonic() - self._started:4.0f} s[/dim]  {text}", soft_wrap=True)

    def run(self, dags: dict[str, Path]) -> list[Result]:
        """Run these DAGs, up to `OPEN_RUNS` side by side, until all have ended, and return a result for each.

        DAGs that wait for messages get some, through the broker or the queue. DAGs that wait for assets are started by
        the updates that the other DAGs make, or else by hand, such as when nothing has changed since the last demo. A
        DAG that cannot be parsed or started, or does not end in time, does not stop the others.

        :param dags: the file of each DAG, by DAG id.
        """
        results = self._wait_until_parsed(dags)
        dag_ids = dags.keys() - results.keys()
        for dag_id, dag in self.api.dags().items():
            if dag_id in dag_ids and dag["is_paused"]:
                self.api.unpause(dag_id)
        since = datetime.now(UTC).isoformat()
        waiting = {dag_id for dag_id in dag_ids if self.api.waits_for_assets(dag_id)}
        messaged = waiting & MESSAGES.keys()
        if not uses_embedded_queue(user_environment()):
            messaged -= {SQS_DAG}
        self._send_messages(messaged)
        queue = in_turn({dag_id: dags[dag_id] for dag_id in dag_ids - waiting})
        run_ids: dict[str, str] = {}
        open_runs: dict[str, str] = {}
        deadline = time.monotonic() + RUN_TIMEOUT_S
        last_end = time.monotonic() if queue or messaged else 0.0
        with self.console.status("") as status:
            while queue or open_runs or waiting:
                if time.monotonic() > deadline:
                    late = ", ".join([*open_runs, *queue, *sorted(waiting)])
                    self.say(f"still running after {RUN_TIMEOUT_S:.0f} s: {late}")
                    break
                runs = self.api.runs(run_after_gte=since)
                at_work = self._progress.look(open_runs)
                for run in runs:
                    if open_runs.get(run["dag_id"]) == run["dag_run_id"] and run["state"] in ENDED:
                        del open_runs[run["dag_id"]]
                        last_end = time.monotonic()
                started = self._started_by_assets(waiting, runs)
                patience = MESSAGE_WAIT_S if waiting & messaged else ASSET_WAIT_S
                free = OPEN_RUNS - len(open_runs) - len(started)
                if queue and free > 0:
                    started |= self._trigger(queue[:free], results)
                    del queue[:free]
                if not open_runs and not started and time.monotonic() > last_end + patience:
                    started = self._trigger(sorted(waiting), results)
                    waiting -= results.keys()
                open_runs |= started
                run_ids |= started
                waiting -= started.keys()
                idle = f"waiting for the scheduler ({', '.join(open_runs)})"
                status.update(f"{time.monotonic() - self._started:.0f} s  {', '.join(at_work) or idle}")
                time.sleep(POLL_S)
        for dag_id, run_id in run_ids.items():
            # A run that had started before may have answered the messages: the run with the most tokens is shown.
            others = self.api.runs(dag_id, updated_at_gte=since) if dag_id in messaged else []
            ids = dict.fromkeys([run_id, *(run["dag_run_id"] for run in others)])
            results[dag_id] = max((self._collect(dag_id, each) for each in ids), key=lambda result: result.tokens)
        return [results.get(dag_id) or Result(dag_id, "not started") for dag_id in dags]

    def broken_files(self) -> dict[str, str]:
        """Return the last line of the error of each file that cannot be imported, by its path in the project."""
        traces = self.api.import_errors()
        return {f"{FOLDER.name}/{file}": trace.strip().split("\n")[-1] for file, trace in traces.items()}

    def _send_messages(self, dag_ids: set[str]) -> None:
        for dag_id in sorted(dag_ids):
            ids = send_to(self.stack, dag_id, number=MESSAGES[dag_id], malformed=1)
            self.say(f"sent {len(ids)} messages, and a malformed one, to {dag_id}")

    def _trigger(self, dag_ids: list[str], results: dict[str, Result]) -> dict[str, str]:
        """Start a run of each, and return the run ids. Where Airflow refuses, add that to the results."""
        run_ids = {}
        for dag_id in dag_ids:
            try:
                run_ids[dag_id] = self.api.trigger(dag_id, CONF.get(dag_id))
            except httpx.HTTPStatusError as error:
                results[dag_id] = Result(dag_id, "not started", result=error.response.text)
        if run_ids:
            self.say(f"triggered {', '.join(run_ids)}")
        return run_ids

    def _started_by_assets(self, dag_ids: set[str], runs: list[dict[str, Any]]) -> dict[str, str]:
        by_assets = [run for run in runs if run["run_type"] == "asset_triggered" and run["dag_id"] in dag_ids]
        started = {run["dag_id"]: run["dag_run_id"] for run in by_assets}
        for dag_id in started:
            self.say(f"an asset was updated: {dag_id} starts")
        return started

    def _wait_until_parsed(self, dags: dict[str, Path]) -> dict[str, Result]:
        """Wait until the other DAGs are parsed, and return a result for each that cannot be run."""
        deadline = time.monotonic() + PARSE_TIMEOUT_S
        while missing := dags.keys() - self.api.dags().keys():
            errors = self.broken_files()
            broken = {dag_id: errors.get(dags[dag_id].relative_to(PROJECT).as_posix()) for dag_id in missing}
            late = time.monotonic() > deadline
            if late or all(broken.values()):
                hint = f"no such DAG after {PARSE_TIMEOUT_S:.0f} s"
                return {
                    dag_id: Result(dag_id, NOT_IMPORTED if error else "not parsed", result=error or hint)
                    for dag_id, error in broken.items()
                }
            time.sleep(POLL_S)
        return {}

    def _collect(self, dag_id: str, run_id: str) -> Result:
        run = self.api.run(dag_id, run_id)
        tasks = self.api.task_instances(dag_id, run_id)
        result = Result(dag_id, run["state"], round(run["duration"] or 0, 1), len(tasks))
        values = []
        for task in tasks:
            where = (dag_id, run_id, task["task_id"])
            if usage := self.api.xcom(*where, USAGE_XCOM_KEY, task["map_index"]):
                result.add_usage(usage)
            values.append(self.api.xcom(*where, "return_value", task["map_index"]))
        result.result = one_line(values) or ("nothing to do" if run["state"] == "success" else "")
        for task in tasks:
            if task["state"] == "failed":
                self._show_failure(dag_id, run_id, task)
                if run["state"] == "failed":
                    result.result = f"{name_of(task)} failed"
        return result

    def _show_failure(self, dag_id: str, run_id: str, task: dict[str, Any]) -> None:
        lines = self.api.log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
        self.console.print(f"\n[red]{dag_id}.{escape(name_of(task))} failed.[/red] The end of its log:")
        self.console.print("\n".join(f"    {line}" for line in lines[-LOG_LINES:]), markup=False, soft_wrap=True)


def in_turn(dags: dict[str, Path]) -> list[str]:
    """Order DAGs: alternately one that calls the model and one that does not; last those that report on the others.

    So the model is busy from start to end, and tasks that do not need it run beside it.

    :param dags: the file of each DAG, by DAG id.
    """
    folders = {dag_id: path.parent.name for dag_id, path in sorted(dags.items())}
    asking = [dag_id for dag_id in folders if folders[dag_id] in ASKING]
    last = [dag_id for dag_id in folders if folders[dag_id] in REPORTING]
    between = [dag_id for dag_id in folders if dag_id not in (*asking, *last)]
    return [dag_id for pair in zip_longest(asking, between) for dag_id in pair if dag_id] + last


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.demo", description=__doc__)
    parser.add_argument("--dags", default="", help="ids of the DAGs to run, a comma list (default: the template's)")
    parser.add_argument("--paid", default="", help="1 to call OpenAI's models if OPENAI_API_KEY is set")
    stack_arguments(parser)
    arguments = parser.parse_args()
    interrupt_on_signals()

    console = Console(highlight=False)
    stack = Stack(arguments.home, arguments.port)
    ours = False
    try:
        dags = wanted_dags(arguments.dags, stack.home / "airflow")
        found = stack.attach()
        demo = Demo(stack, console)
        if has_key_alone() and arguments.paid != "1":
            if found:
                raise PaidModelError("the running stack uses OPENAI_API_KEY. Use make demo PAID=1, or make stop first")
            demo.say(EMBEDDED_ALL_THE_SAME)
            use_embedded_model()
        if notice := cost_notice(len(dags) / len(template_dags())):
            demo.say(notice)
        if found:
            demo.say(f"using the stack that runs at {stack.api.url}")
            stack.api.log_in()
        else:
            ours = True
            stack.start(demo.say)
        results = demo.run(dags)
        failed = any(result.state != "success" for result in results)
        files = {path.relative_to(PROJECT).as_posix() for path in dags.values()}
        broken = {file: error for file, error in demo.broken_files().items() if file not in files}
        results += [Result(file, NOT_IMPORTED, result=error) for file, error in broken.items()]
        not_run = sorted(stack.api.dags().keys() - dags.keys() - template_dags().keys())
        demo.say(f"memory of the stack: {stack.processes.memory_mb():.0f} MB")
    except (StackError, PaidModelError, httpx.HTTPError) as error:
        sys.exit(f"The demo cannot run: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    finally:
        if ours:
            console.print("[dim]stopping the stack[/dim]")
            stack.stop()

    report = stack.home / "demo.json"
    report.write_text(json.dumps([asdict(result) for result in results], indent=2, ensure_ascii=False))
    console.print(table_of(results), totals_of(results), sep="\n")
    console.print(f"Whole results: {report}\nFiles the DAGs wrote: {stack.home / 'artifacts'}", soft_wrap=True)
    if not_run:
        console.print(
            f"Your own DAGs run when they are named: make demo DAG={','.join(not_run)}", markup=False, soft_wrap=True
        )
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
