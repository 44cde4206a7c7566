"""Airflow's public REST API, as an application would use it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx


class AirflowAPI:
    """A client of the API at `url` (without `/api/v2`).

    :raises httpx.HTTPStatusError: from every method, for an answer that is not 2xx.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=30)

    def log_in(self) -> None:
        """Get a token; the local stack needs no name and no password."""
        token = self._json("GET", "/auth/token")["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    def health(self) -> dict[str, str | None]:
        """Return the status by component (`scheduler`, `dag_processor`, ...): "healthy", "unhealthy" or None."""
        parts = self._json("GET", "/api/v2/monitor/health")
        return {name: part["status"] for name, part in parts.items()}

    def dags(self) -> dict[str, dict[str, Any]]:
        """Return the DAGs that have been parsed, by id: `is_paused` and more."""
        return {dag["dag_id"]: dag for dag in self._pages("/api/v2/dags", "dags")}

    def import_errors(self) -> dict[str, str]:
        """Return the stack trace by DAG file, whose path is relative to the DAGs folder."""
        errors = self._pages("/api/v2/importErrors", "import_errors")
        return {error["filename"]: error["stack_trace"] for error in errors}

    def unpause(self, dag_id: str) -> None:
        """Unpause a DAG."""
        self._json("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def set_pool(self, name: str, slots: int, description: str) -> None:
        """Create the pool unless it exists."""
        body = {"name": name, "slots": slots, "description": description}
        response = self._http.post("/api/v2/pools", json=body)
        if response.status_code != httpx.codes.CONFLICT:
            response.raise_for_status()

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a run and return its id."""
        body = {"logical_date": None, "conf": conf or {}}
        run_id: str = self._json("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body)["dag_run_id"]
        return run_id

    def backfill_dates(self, dag_id: str, first: str, last: str) -> list[str]:
        """Return the logical dates without a run, which a backfill of these days (ISO 8601) would run."""
        body = {"dag_id": dag_id, "from_date": f"{first}T00:00:00Z", "to_date": f"{last}T23:59:59Z"}
        found = self._json("POST", "/api/v2/backfills/dry_run", json=body)
        return [each["logical_date"] for each in found["backfills"]]

    def waits_for_assets(self, dag_id: str) -> bool:
        """Return whether updates of assets start this DAG."""
        return self._json("GET", f"/api/v2/dags/{dag_id}/details")["asset_expression"] is not None

    def runs(self, dag_id: str = "~", **query: Any) -> list[dict[str, Any]]:
        """Return runs, oldest first: `dag_id`, `dag_run_id`, `run_type`, `state`, `duration` in seconds and more.

        :param dag_id: default: of all DAGs.
        :param query: filters, such as `run_after_gte`, a time (ISO 8601).
        """
        return self._pages(f"/api/v2/dags/{dag_id}/dagRuns", "dag_runs", order_by="run_after", **query)

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return a run's `state` (queued, running, success, failed), `duration` in seconds and more."""
        run: dict[str, Any] = self._json("GET", self._run(dag_id, run_id))
        return run

    def task_instances(self, dag_id: str = "~", run_id: str = "~", **query: Any) -> list[dict[str, Any]]:
        """Return task instances, including mapped ones.

        :param dag_id: default: of all DAGs.
        :param run_id: default: of all runs.
        :param query: filters, such as `updated_at_gte`, a time (ISO 8601).
        """
        return self._pages(f"{self._run(dag_id, run_id)}/taskInstances", "task_instances", **query)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str, map_index: int = -1) -> Any:
        """Return an XCom's value, or None if there is none."""
        path = f"{self._run(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/{key}"
        params = {"map_index": map_index, "deserialize": False, "stringify": False}
        response = self._http.get(path, params=params)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        response.raise_for_status()
        return response.json()["value"]

    def open_requests(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return a run's human-in-the-loop requests without an answer: `subject`, `body`, `params`, ..."""
        return self._pages(f"{self._run(dag_id, run_id)}/hitlDetails", "hitl_details", response_received=False)

    def answer_request(self, request: dict[str, Any], option: str, fields: dict[str, Any]) -> None:
        """Answer one of `open_requests`.

        :param fields: the values of the request's form.
        """
        ti = request["task_instance"]
        path = f"{self._run(ti['dag_id'], ti['dag_run_id'])}/taskInstances/{ti['task_id']}/{ti['map_index']}"
        self._json("PATCH", f"{path}/hitlDetails", json={"chosen_options": [option], "params_input": fields})

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int, map_index: int = -1) -> list[str]:
        """Return the lines of a task's log; of an exception only its type and message."""
        path = f"{self._run(dag_id, run_id)}/taskInstances/{task_id}/logs/{try_number}"
        lines = []
        for entry in self._json("GET", path, params={"map_index": map_index, "full_content": True})["content"]:
            lines.append(entry["event"])
            lines += [f"{error['exc_type']}: {error['exc_value']}" for error in entry.get("error_detail", [])]
        return lines

    def _run(self, dag_id: str, run_id: str) -> str:
        return f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"

    def _pages(self, path: str, name: str, **query: Any) -> list[dict[str, Any]]:
        """Return all entries of a list, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            page = self._json("GET", path, params={**query, "limit": 100, "offset": len(found)})
            found += page[name]
            if not page[name] or len(found) >= page["total_entries"]:
                return found

    def _json(self, method: str, path: str, **kwargs: Any) -> Any:
        response = self._http.request(method, path, **kwargs)
        response.raise_for_status()
        return response.json()
