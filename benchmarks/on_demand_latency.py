"""How long an application waits for `on_demand_inference`, and for whom: Airflow or this project.

    python -m benchmarks.on_demand_latency [--requests 20]

Starts a local stack whose language model is scripted (a fake, over real HTTP) and answers at once. What remains is
Airflow's part (the POST, the scheduler, the task's process and its end) and ours (the call of the model, from the
connection to the answer, and the client's polling). Prints median and 95th percentile in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

from llmock.pytest_plugin import LLMock
from llmock.testing import LLMockServer

from examples.ask import Airflow
from include.ai.usage import USAGE_XCOM_KEY
from local.airflow_api import AirflowAPI
from local.processes import free_ports
from local.stack import Stack

DAG_ID = "on_demand_inference"
ANSWER = {"category": "billing", "urgency": "low", "summary": "An invoice is wrong."}
TIMEOUT_S = 60.0


def measure(client: Airflow, api: AirflowAPI, key: str) -> dict[str, float]:
    """Seconds of each part of one request."""
    posted = time.time()
    client.ask({"message": "Our invoice is wrong."}, key, TIMEOUT_S)
    answered = time.time()
    (task,) = api.task_instances(DAG_ID, key)
    queued, started, ended = (
        datetime.fromisoformat(task[name]).timestamp() for name in ("queued_when", "start_date", "end_date")
    )
    call = api.xcom(DAG_ID, key, "answer", USAGE_XCOM_KEY)["seconds"]
    return {
        "Airflow: POST to queued": queued - posted,
        "Airflow: queued to started": started - queued,
        "Airflow: in the task, without the call": ended - started - call,
        "ours: the call": call,
        "both: end of the task to answer": answered - ended,
        "in all": answered - posted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_demand_latency", description=__doc__)
    parser.add_argument("--requests", type=int, default=20, help="how many, one after the other (default: %(default)s)")
    requests = parser.parse_args().requests
    server = LLMockServer().start()
    LLMock(server).call_tool("final_result", ANSWER, times=None)
    connection = {"conn_type": "pydanticai", "host": server.base_url("openai"), "password": "none"}
    model = {"model": "openai-chat:scripted"}
    os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"] = json.dumps({**connection, "extra": model})
    with tempfile.TemporaryDirectory() as home:
        stack = Stack(Path(home), free_ports(1)[0])
        try:
            stack.start(say=print)
            while DAG_ID not in stack.api.dags():
                time.sleep(0.5)
            client = Airflow(stack.api.url)
            client.ask({"message": "The first one is slower."}, "warm-up", TIMEOUT_S)
            measured = [measure(client, stack.api, f"request-{number}") for number in range(requests)]
        finally:
            stack.stop()
            server.stop()
    print(f"{'seconds, of ' + str(requests) + ' requests':42}  median     p95")
    for part in measured[0]:
        values = sorted(each[part] for each in measured)
        p95 = values[min(len(values) - 1, int(0.95 * len(values)))]
        print(f"{part:42}  {statistics.median(values):6.2f}  {p95:6.2f}")


if __name__ == "__main__":
    main()
