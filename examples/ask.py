"""Ask the DAG `on_demand_inference` for an answer, as an application would: over Airflow's REST API, and wait for it.

    python examples/ask.py "The app says my password is wrong."

Where Airflow is, and who asks, comes from the environment:

    AIRFLOW_URL       http://127.0.0.1:8080 if unset (the local stack); a deployment's URL otherwise
    AIRFLOW_TOKEN     a bearer token, as an Astro deployment's API token; or
    AIRFLOW_USERNAME  and AIRFLOW_PASSWORD, exchanged for a token. The local stack needs neither.

The key of a request is its run's id: the same key again is the same run, and the same answer, paid once. If anything
fails on the way (a lost connection, a restart of Airflow), ask again with the key. Copy this file: it needs httpx only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import uuid
from collections.abc import Iterator
from itertools import count
from time import monotonic, sleep
from typing import Any
from urllib.parse import quote

import httpx

DAG_ID = "on_demand_inference"
ANSWER = "taskInstances/answer/xcomEntries/return_value"
ENDED = ("success", "failed")
POLL_S = 1  # how often Airflow looks whether the run has ended, while a client waits
QUEUED_S = 5  # a run that is queued for longer may be of a paused DAG


class AskError(Exception):
    """There is no answer; the message says why, and what to do."""


class Airflow:
    """Airflow's REST API at one URL. An answer takes four requests, and a few more if Airflow is busy or restarts.

    :param url: without `/api/v2`.
    :param token: a bearer token; without one, `username` and `password` are exchanged for it.
    """

    def __init__(self, url: str, token: str | None = None, username: str | None = None, password: str | None = None):
        self._http = httpx.Client(base_url=url.rstrip("/"), timeout=60)
        self._login = None if username is None else {"username": username, "password": password}
        self._deadline = 0.0
        self._can_wait = True
        if token:
            self._http.headers["Authorization"] = f"Bearer {token}"

    def ask(self, conf: dict[str, Any], key: str, timeout: float) -> Any:
        """Start the run `key`, unless it was started already, and return its answer.

        :param timeout: seconds to wait for the answer; it can be asked for again later.
        :raises AskError: it was refused, failed, or is not there in time.
        """
        self._deadline = monotonic() + timeout
        if "Authorization" not in self._http.headers:
            self._log_in()
        self._start(conf, key)
        state = self._wait(key)
        if state == "failed":
            raise AskError(f"The run {key!r} has failed. Its log says why; a new try takes a new key.")
        if state != "success":
            raise AskError(f"No answer within {timeout:.0f} s; the run {key!r} is {state}. Ask again with this key.")
        return self._call("GET", f"{self._run(key)}/{ANSWER}", params={"stringify": False}).json()["value"]

    _runs = f"/api/v2/dags/{DAG_ID}/dagRuns"

    def _run(self, key: str) -> str:
        return f"{self._runs}/{quote(key, safe='')}"

    def _left(self) -> float:
        return self._deadline - monotonic()

    def _log_in(self) -> None:
        method = "POST" if self._login else "GET"  # the local stack wants no name
        token = self._call(method, "/auth/token", json=self._login).json()["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    def _start(self, conf: dict[str, Any], key: str) -> None:
        body = {"dag_run_id": key, "logical_date": None, "conf": conf}
        response = self._call("POST", self._runs, json=body, allow=(httpx.codes.CONFLICT,))
        if response.status_code == httpx.codes.CONFLICT:
            asked = self._call("GET", self._run(key)).json()["conf"]
            if any(asked.get(name) != value for name, value in conf.items()):
                raise AskError(f"The key {key!r} was used for another question. A new question takes a new key.")

    def _wait(self, key: str) -> str:
        """The state in which the run ended, or in which it is when time is up.

        :raises AskError: the DAG is paused.
        """
        queued_for_a_reason = False
        for pause in (pauses := _pauses()):
            most_queued = None if queued_for_a_reason else QUEUED_S // POLL_S
            state = self._streamed_state(key, most_queued) or str(self._call("GET", self._run(key)).json()["state"])
            if state == "queued" and not queued_for_a_reason:
                if self._call("GET", f"/api/v2/dags/{DAG_ID}").json()["is_paused"]:
                    raise AskError(
                        f"The DAG {DAG_ID!r} is paused, so the run waits, as DAGs are when Airflow first sees them. "
                        f"Unpause it (the switch beside its name in Airflow's UI); then ask again with the key {key!r}."
                    )
                queued_for_a_reason = True
                pause = next(pauses)  # a longer one, as this look took one request more
            if state in ENDED or self._left() <= 0:
                return state
            sleep(min(pause, max(0, self._left())))
        raise AssertionError("pauses never end")

    def _streamed_state(self, key: str, most_queued: int | None) -> str | None:
        """As `_wait`, in one request: Airflow sends a line a second. None if it cannot, or the connection breaks.

        :param most_queued: return `queued` after so many lines that say so.
        """
        if not self._can_wait:
            return None
        headers = {"Accept-Encoding": "identity"}  # compressed, all lines would come at the end
        try:
            with self._http.stream(
                "GET", f"{self._run(key)}/wait", params={"interval": POLL_S}, headers=headers
            ) as response:
                self._can_wait = response.status_code != httpx.codes.NOT_FOUND  # Airflow 3.0
                for number, line in enumerate(response.iter_lines() if response.is_success else (), start=1):
                    state = str(json.loads(line)["state"])
                    if state in ENDED or self._left() <= 0 or (state == "queued" and number == most_queued):
                        return state
        except httpx.TransportError:
            pass
        return None

    def _call(self, method: str, path: str, allow: tuple[int, ...] = (), **kwargs: Any) -> httpx.Response:
        """Send a request, again and again while Airflow is unreachable or busy: each is safe to send twice."""
        for pause in _pauses():
            try:
                response = self._http.request(method, path, **kwargs)
                if response.is_success or response.status_code in allow:
                    return response
                problem = f"{response.status_code} {_detail(response)}"
                if response.status_code < 500 and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                    break
                asked = response.headers.get("Retry-After", "")
                pause += int(asked) if asked.isdecimal() else 0
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            if pause > self._left():
                break
            sleep(pause)
        raise AskError(f"{method} {self._http.base_url}{path}: {problem}")


def _pauses() -> Iterator[float]:
    """Seconds: about 2, 4, 8, ..., at random, so that clients which were refused together do not come back together."""
    for doublings in count(1):
        yield 2**doublings * random.uniform(1, 1.5)  # noqa: S311


def _detail(response: httpx.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase
    return detail if isinstance(detail, str) else json.dumps(detail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("message", help="what the customer wrote")
    parser.add_argument("--key", help="idempotency key (default: a new one)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait (default: %(default)s)")
    arguments = parser.parse_args()
    environment = os.environ.get
    key = arguments.key or f"ask-{uuid.uuid4()}"
    try:
        airflow = Airflow(
            environment("AIRFLOW_URL", "http://127.0.0.1:8080"),
            environment("AIRFLOW_TOKEN"),
            environment("AIRFLOW_USERNAME"),
            environment("AIRFLOW_PASSWORD"),
        )
        answer = airflow.ask({"message": arguments.message}, key, arguments.timeout)
    except AskError as error:
        sys.exit(str(error))
    print(json.dumps(answer, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
