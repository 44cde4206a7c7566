"""Processes that call a model by one connection, each with a clock that only its waiting moves.

    python -m tests.account_workers

It reads lines from its input: a JSON array of an object of environment variables and a list of `CLOCK:KIND:CALLS`, each
of which is a process of its own. When all have ended it writes a line that says how. A process's clock starts at CLOCK
seconds. KIND is `single` (one call after another, as tasks with one call each make them), `batch` (all at once),
`embedding` (one after another), or `killed` (as batch, but it is killed with SIGKILL when its first turn comes). Each
request has the header `x-sent`: when it was let go, on the process's clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.embeddings import infer_embedding_model
from pydantic_ai.models import infer_model

from include.ai import account, rate_limit
from include.ai.embeddings import Embedder
from include.ai.layers import layered_model
from include.ai.limited_model import LimitedModel, TaskUsage
from include.ai.model import connection_model
from include.common.storage import storage_path
from tests.virtual_time import VirtualTime

CONN_ID = "pydanticai_default"


def work(seconds: float, kind: str, calls: int) -> None:
    clock = VirtualTime(pytest.MonkeyPatch(), rate_limit)
    account.time = rate_limit.time  # type: ignore[attr-defined]
    clock.now = seconds
    before = rate_limit.RateLimit._before

    async def noted(self: rate_limit.RateLimit, request: Any) -> None:
        await before(self, request)
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        request.headers["x-sent"] = str(clock.now)

    rate_limit.RateLimit._before = noted  # type: ignore[method-assign]
    texts = [f"review {n}" for n in range(calls)]
    if kind == "embedding":
        for text in texts:
            Embedder(CONN_ID).embed_query(text)
    elif kind == "single":
        for text in texts:
            Agent(connection_model(CONN_ID), output_type=bool).run_sync(text)
    else:
        asyncio.run(all_at_once(texts))


async def all_at_once(texts: list[str]) -> None:
    model = layered_model(CONN_ID, lambda conn_id: LimitedModel(conn_id, TaskUsage(), len(texts)))
    agent = Agent(model, output_type=bool)
    await asyncio.gather(*(agent.run(text) for text in texts))


def main() -> None:
    for line in sys.stdin:
        environment, workers = json.loads(line)
        os.environ |= environment
        infer: Any = infer_embedding_model if "embedding" in workers[0] else infer_model
        connection_model(CONN_ID).source.build(infer, {})  # imports for all of them
        storage_path()
        children = {}
        for worker in workers:
            if (pid := os.fork()) == 0:
                seconds, kind, calls = worker.split(":")
                work(float(seconds), kind, int(calls))
                os._exit(0)
            children[pid] = worker
        ends = [(worker, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) for pid, worker in children.items()]
        print("ended", json.dumps(ends), flush=True)


if __name__ == "__main__":
    main()
