"""Agents: models with tools, for `@task.agent` on either AI SDK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.tools import Tool
from pydantic_ai.toolsets import FunctionToolset

from include.ai import COMMON_AI, LLM_CONN_ID, active_sdk, llm_kwargs


class Toolset(FunctionToolset[None]):
    """Tools of an agent. The serialized DAG contains its repr, so that is the same at every parse."""

    def __repr__(self) -> str:
        return f"Toolset({', '.join(sorted(self.tools))})"


def agent_kwargs(
    *,
    system_prompt: str,
    tools: Sequence[Callable[..., Any] | Tool[None]] = (),
    output_type: type[Any] = str,
    conn_id: str = LLM_CONN_ID,
    **layers: Any,
) -> dict[str, Any]:
    """Return keyword arguments for `@task.agent`: as `llm_kwargs`, with the agent's prompt, tools and output.

    :param tools: functions (the model reads their docstrings) or `pydantic_ai.Tool`s. They are passed as a toolset,
        which the SDKs leave alone; airflow-ai-sdk drops the settings of tools passed to the agent (approval, retries,
        time-out, schema).
    :param output_type: `str`, or a subclass of `BaseModel`.
    :param conn_id: the connection to the model.
    :param layers: `budget_usd` and `reuse`: see `llm_kwargs`.
    """
    toolsets = [Toolset(tools=list(tools), id="tools")] if tools else []
    agent: dict[str, Any] = {"system_prompt": system_prompt, "toolsets": toolsets, "output_type": output_type}
    settings = llm_kwargs(conn_id, **layers)
    if active_sdk() == COMMON_AI:
        return settings | agent
    return settings | {"agent": Agent(settings.pop("model"), **agent)}
