"""The one place that knows the AI SDK.

A DAG takes its task settings, its output base class and its wrapper for text from outside from here, so that
it runs unchanged on any SDK that registers `@task.llm`, `@task.agent` and `@task.llm_branch`:

    @task.llm(**llm_kwargs(), system_prompt="...", output_type=TicketAnalysis)
    @task.agent(**agent_kwargs(system_prompt="...", tools=[search_market_facts]))

The model is that of the Airflow connection `pydanticai_default`, read at the first call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import airflow_ai_sdk
import airflow_ai_sdk.operators.agent as sdk_agent
from airflow.providers.standard.utils.skipmixin import XCOM_SKIPMIXIN_FOLLOWED, XCOM_SKIPMIXIN_KEY
from airflow.sdk import get_current_context
from pydantic import ConfigDict
from pydantic_ai import Agent
from pydantic_ai.messages import TextContent
from pydantic_ai.tools import Tool
from pydantic_ai.toolsets import FunctionToolset

from include.llm_model import ConnectionModel
from include.task_defaults import LLM_TASK

LLM_CONN_ID = "pydanticai_default"

# The SDK prints each prompt and answer into the task's log; at DEBUG they stay available to who asks for them.
_sdk_log = logging.getLogger("airflow_ai_sdk.operators.agent")
sdk_agent.print = _sdk_log.debug


class BaseModel(airflow_ai_sdk.BaseModel):  # type: ignore[misc]
    """Base class of what a model is asked to return. It lands in XCom as plain JSON (a dict).

    A validation error does not quote the model's answer, which would put it into the log.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    def model_dump(self, *, mode: str = "json", **kwargs: Any) -> dict[str, Any]:
        """As pydantic's, but JSON by default: enums and dates become what XCom can hold."""
        dumped: dict[str, Any] = super().model_dump(mode=mode, **kwargs)
        return dumped


def llm_kwargs() -> dict[str, Any]:
    """Keyword arguments for `@task.llm` and `@task.llm_branch`: the model, and retries, time-out and pool."""
    return {**LLM_TASK, "model": ConnectionModel(LLM_CONN_ID)}


def agent_kwargs(
    *,
    system_prompt: str,
    tools: Sequence[Callable[..., Any] | Tool[None]] = (),
    output_type: type[Any] = str,
) -> dict[str, Any]:
    """Keyword arguments for `@task.agent`: as `llm_kwargs`, with the agent's prompt, tools and output.

    :param tools: functions (their docstrings tell the model what they do) or `pydantic_ai.Tool`s. They go in
        as a toolset, which the SDK leaves alone; tools given to the agent lose their settings (approval,
        retries, time-out, schema).
    :param output_type: `str`, or a subclass of `BaseModel`.
    """
    agent = Agent(
        ConnectionModel(LLM_CONN_ID),
        system_prompt=system_prompt,
        output_type=output_type,
        toolsets=[FunctionToolset(tools=list(tools))] if tools else [],
    )
    return {**LLM_TASK, "agent": agent}


def untrusted(text: str) -> list[TextContent]:
    """Text from outside, as a prompt: it reaches the model as these very characters, never as a template."""
    return [TextContent(content=text)]


def chosen_branches(task_id: str) -> list[str]:
    """The tasks that the `@task.llm_branch` task `task_id` of this run chose."""
    decision = get_current_context()["ti"].xcom_pull(task_ids=task_id, key=XCOM_SKIPMIXIN_KEY)
    return list(decision[XCOM_SKIPMIXIN_FOLLOWED])
