"""The emulator of OpenAI's fine-tuning and batches for tests: what a test asks of it, and sees in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx

from include.fine_tuning.checks import TRAINING

BASE_MODEL = "smollm2-135m-instruct"
JOBS = "/v1/fine_tuning/jobs"
BATCHES = "/v1/batches"


@dataclass
class Emulator:
    """A running emulator.

    :param url: its base URL, with `/v1`.
    """

    url: str
    key: str = "local"

    def connection(self, **extra: Any) -> str:
        """A connection to it as JSON, for AIRFLOW_CONN_*."""
        extra = {"model": BASE_MODEL, "training_usd_per_million_tokens": 3.0} | extra
        return json.dumps({"conn_type": "openai", "host": self.url, "password": self.key, "extra": extra})

    def client(self) -> Any:
        import openai

        return openai.OpenAI(api_key=self.key, base_url=self.url, max_retries=0)

    def upload(self) -> str:
        with TRAINING.open("rb") as file:
            return self.client().files.create(file=file, purpose="fine-tune").id

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, the newest first."""
        return self._get("/emulator/jobs")

    def requests(self, method: str, path: str) -> list[dict[str, Any]]:
        """The requests to this path that came."""
        return [r for r in self._get("/emulator/requests") if (r["method"], r["path"]) == (method, path)]

    def next_job(self, **outcome: Any) -> None:
        """What becomes of the next job."""
        self._post("/emulator/jobs", outcome)

    def set_job(self, job_id: str, status: str) -> None:
        """End a job now."""
        self._post(f"/emulator/jobs/{job_id}", {"status": status})

    def batches(self) -> list[dict[str, Any]]:
        """All batches, the newest first."""
        return self._get("/emulator/batches")

    def next_batch(self, **outcome: Any) -> None:
        """What becomes of the next batch."""
        self._post("/emulator/batches", outcome)

    def set_batch(self, batch_id: str, status: str) -> None:
        """End a batch now."""
        self._post(f"/emulator/batches/{batch_id}", {"status": status})

    def fault(self, method: str, path: str, times: int = 1, **fault: Any) -> None:
        """What becomes of the next requests to this path."""
        self._post("/emulator/faults", {"method": method, "path": path, "times": times, **fault})

    def _get(self, path: str) -> list[dict[str, Any]]:
        return self._http.get(path).raise_for_status().json()

    def _post(self, path: str, body: dict[str, Any]) -> None:
        self._http.post(path, json=body).raise_for_status()

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url.removesuffix("/v1"), timeout=10)
