"""Settings that every DAG's tasks share, each with its reason. Unpack them; override one by naming it after.

@dag(default_args=DEFAULT_ARGS)
@task.llm(**llm_kwargs(), system_prompt=...)     # llm_kwargs() contains LLM_TASK
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from include.common.templates import end_rendering

LLM_POOL = "llm_pool"

# What a task returns is data (a prompt, an answer, a customer's text): it belongs in XCom, not in the log.
QUIET: dict[str, Any] = {"show_return_value_in_logs": False}

DEFAULT_ARGS: dict[str, Any] = {
    **QUIET,
    "owner": "genai",
    "pre_execute": end_rendering,
    # A lost database connection or a restarted worker recovers within a minute; more retries would hide a bug.
    "retries": 2,
    "retry_delay": timedelta(seconds=10),
    # A task that hangs would hold a slot until someone notices. The wait of a deferred task does not count.
    "execution_timeout": timedelta(hours=2),
}

LLM_TASK: dict[str, Any] = {
    # Provider outages last minutes, not days; those of seconds are waited out within a try, see include/ai/model.py.
    # Non-retryable errors (a refused key, an unknown model, an invalid request) fail at once.
    "retries": 3,
    "retry_delay": timedelta(seconds=15),
    "retry_exponential_backoff": True,
    # Long enough for a per-minute rate limit to reset, short enough for a person who waits.
    "max_retry_delay": timedelta(minutes=5),
    # A task makes a few calls; one that takes longer is hanging, and holds a slot of the pool.
    "execution_timeout": timedelta(minutes=20),
    # One place to limit how many tasks call models at the same time. The account's limits are set in the connection.
    "pool": LLM_POOL,
}
