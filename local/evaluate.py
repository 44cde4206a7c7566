"""Evaluate prompts from the shell, as the DAG `evaluate_prompts` does, in CI or while you edit a prompt.

    python -m local.evaluate --subjects severity,teams --model openai-chat:gpt-6-luna --summary summary.md

No Airflow needs to run. The exit status is 0 if every subject passed, 1 if one got worse or none could be evaluated, 3
if one is neither: it has too few cases, a metric is missing, it could not be evaluated, or nothing was accepted yet.
`--accept` makes the results the accepted ones; the status is then 0 if all were accepted, 1 if one was not because it
got worse, 3 if one was not for another reason. 2 means a wrong option.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local.arguments import number, whole_number
from local.environment import (
    CHAT_MODEL,
    DEFAULT_HOME,
    EMBEDDING_MODEL,
    PROJECT,
    enter,
    model_connection,
    user_environment,
    uses_embedded_model,
)
from local.processes import ProcessGroup, StackError, answers, free_ports, require_free_port

if TYPE_CHECKING:
    from include.evaluation.report import Compared
    from include.evaluation.run import EvaluationRun

PASSED, WORSE, NEITHER = 0, 1, 3
START_TIMEOUT_S = 60.0
# The connection to the model that `--model` names.
MODEL_CONN_ID = "evaluated_model"
# Of the embedded model, if it is free: an answer is reused only for a call of the same URL.
MODEL_PORT = 8136
REUSE_DAYS = 7.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, print the report, and return the status.

    :raises StackError: nothing can be evaluated with these arguments.
    """
    given = parsed(arguments)
    enter(given.home)
    store = json.dumps({"conn_type": "lancedb", "host": str(given.home / "lancedb")})
    os.environ.setdefault("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", store)
    from airflow.providers.common.compat.sdk import AirflowException  # it reads its settings when it is imported

    try:
        given.home.mkdir(parents=True, exist_ok=True)
        if given.summary:
            given.summary.open("a").close()
        with embedded_models(given.home) if uses_embedded_model(user_environment()) else nullcontext():
            return evaluate(given)
    except (AirflowException, OSError) as error:
        raise StackError(str(error)) from None


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m local.evaluate", description=__doc__)
    parser.add_argument("--subjects", default="", help="names, comma-separated; empty: all")
    parser.add_argument(
        "--model", default="", help="<provider>:<name>, or the id of a connection; empty: the tasks' own"
    )
    parser.add_argument("--judge", default="pydanticai_default", help="the id of the connection to the judge")
    parser.add_argument("--limit", type=whole_number("LIMIT", 1, 100_000), help="only so many cases of each subject")
    parser.add_argument("--trials", type=whole_number("TRIALS", 1, 20), default=1, help="how often each case is asked")
    parser.add_argument("--budget", type=number("BUDGET", 0, 100_000), help="US dollars for new answers, shared")
    parser.add_argument("--alarms", type=number("ALARMS", 0.0001, 0.5), default=0.05, help="the rate of false alarms")
    parser.add_argument("--fresh", action="store_true", help="reuse no answer of an earlier evaluation")
    parser.add_argument("--accept", action="store_true", help="make the results the accepted ones")
    parser.add_argument("--summary", type=Path, default=None, help="append the report to this Markdown file")
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="where data is, unless GENAI_STORAGE says so")
    return parser.parse_args(arguments)


def evaluate(given: argparse.Namespace) -> int:
    """Evaluate the subjects one after the other."""
    from include.evaluation.report import markdown
    from include.evaluation.run import EvaluationRun
    from include.evaluation.verdicts import PASSED as PASSED_OUTCOMES
    from include.evaluation.verdicts import Outcome
    from include.sample.evaluation import CASES
    from include.subjects import subjects

    now = datetime.now(UTC)
    params: dict[str, Any] = {
        "subjects": [name.strip() for name in given.subjects.split(",") if name.strip()] or None,
        "conn_id": connection_of(given.model) if given.model else None,
        "judge_conn_id": given.judge,
        "limit": given.limit,
        "trials": given.trials,
        "budget_usd": given.budget,
        "reuse_days": None if given.fresh else REUSE_DAYS,
        "alarm_rate": given.alarms,
    }
    run = EvaluationRun(f"shell {now:%Y-%m-%dT%H:%M:%S.%f}", params, subjects(CASES), PROJECT / "dags")
    names = run.choose()
    if not names:
        raise StackError("No DAG of a subject is in this project: see include/subjects.py.")
    compared = run.compare(names, [name for name in names if evaluated(run, name, len(names))])
    done = [each for each in compared.values() if each]
    if not done:
        return WORSE
    report = f"# Evaluation\n\n`{now:%Y-%m-%d}` · `{run.run_id}`\n\n{markdown(done, given.alarms)}"
    print(report)
    if given.summary:
        with given.summary.open("a", encoding="utf-8") as file:
            file.write(report)
    if given.accept:
        return accept(run.run_id, compared, now)
    outcomes = {each.verdict.outcome for each in done}
    if Outcome.WORSE in outcomes:
        return WORSE
    return PASSED if len(done) == len(names) and outcomes <= set(PASSED_OUTCOMES) else NEITHER


def accept(run_id: str, compared: Mapping[str, Compared | None], now: datetime) -> int:
    """Accept the results, except those that are worse or that cannot show that they are not."""
    from include.evaluation.accepting import accept_result, why_not
    from include.evaluation.verdicts import Outcome

    status = PASSED if all(compared.values()) else NEITHER
    for each in filter(None, compared.values()):
        if reason := why_not(each):
            print(f"Not accepted: {reason}", file=sys.stderr)
            if each.verdict.outcome is Outcome.WORSE:
                status = WORSE
            elif status == PASSED:
                status = NEITHER
        else:
            before = each.accepted.at.isoformat() if each.accepted else None
            accept_result(run_id, each.result.subject, "the shell", now, before)
            print(f"Accepted: {each.line()}", file=sys.stderr)
    return status


def evaluated(run: EvaluationRun, name: str, share: int) -> bool:
    """Evaluate one subject; print the error if it fails."""
    from airflow.providers.common.compat.sdk import AirflowException

    try:
        run.evaluate(name, share)
    except AirflowException as error:
        print(f"{name} was not evaluated: {error}", file=sys.stderr)
        return False
    return True


def connection_of(model: str) -> str:
    """Return the id of a connection to this model: at the provider of `pydanticai_default`, if there is one.

    :raises StackError: it is neither a model nor the id of a connection.
    """
    if not re.fullmatch(r"[\w.-]+(:\S+)?", model):
        raise StackError(f"{model!r} is not <provider>:<name>, such as openai-chat:gpt-6-luna, nor a connection's id.")
    if ":" not in model:
        return model
    from airflow.providers.common.compat.sdk import AirflowNotFoundException
    from airflow.sdk import Connection

    from include.ai import LLM_CONN_ID
    from include.common.prices import PRICE_KEY

    made: dict[str, Any] = {"conn_type": "pydanticai", "extra": {"model": model}}
    try:
        conn = Connection.get(LLM_CONN_ID)
    except AirflowNotFoundException:  # a key in the environment is enough
        conn = None
    # Not at the embedded model's server, which answers under any name.
    if conn and conn.extra_dejson.get("model") != f"openai-chat:{CHAT_MODEL}":
        extra = {key: value for key, value in conn.extra_dejson.items() if key != PRICE_KEY}
        made |= {"host": conn.host, "password": conn.password, "extra": {**extra, "model": model}}
    os.environ[f"AIRFLOW_CONN_{MODEL_CONN_ID.upper()}"] = json.dumps(made)
    return MODEL_CONN_ID


@contextmanager
def embedded_models(home: Path) -> Iterator[None]:
    """Run the embedded models while the block runs, and let the project's connections lead to them."""
    port = MODEL_PORT
    try:
        require_free_port(port)
    except StackError:
        (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    print("No model is set, so the embedded one answers (SmolLM2-135M): expect weak answers.", file=sys.stderr)
    os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"] = model_connection(f"{url}/v1", f"openai-chat:{CHAT_MODEL}")
    os.environ["AIRFLOW_CONN_EMBEDDINGS_DEFAULT"] = model_connection(f"{url}/v1", f"openai:{EMBEDDING_MODEL}")
    processes = ProcessGroup(home / "evaluation")
    try:
        command = [sys.executable, "-m", "local.model_server", "--port", str(port)]
        processes.spawn("model-server", command, dict(os.environ), PROJECT)
        processes.wait_for("model-server", lambda: answers(f"{url}/health"), time.monotonic() + START_TIMEOUT_S)
        yield
    finally:
        processes.stop()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StackError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. The answers so far are kept: run the same command again to continue.")
