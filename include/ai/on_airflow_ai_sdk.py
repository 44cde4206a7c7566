"""airflow-ai-sdk, for `include.ai`, with fixes, because it is discontinued.

Without them it prints each prompt and answer to the task's log, converts only instances of its own base class to plain
JSON, and makes one string of the list of tasks that `allow_multiple_branches` allows.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_ai_sdk.operators.agent import AgentDecoratedOperator
from airflow_ai_sdk.operators.llm_branch import LLMBranchDecoratedOperator
from pydantic_ai import Agent

from include.ai.model import connection_model
from include.ai.output import check_output, error_first, output_to_json, output_to_task_ids
from include.common.task_defaults import QUIET

if TYPE_CHECKING:
    from airflow.sdk import Context


def run_agent(self: Any, context: Context) -> Any:
    """Run `@task.llm` and `@task.agent`: their `execute`."""
    prompt = super(AgentDecoratedOperator, self).execute(context)
    self.agent.output_validator(check_output)
    return output_to_json(error_first(self.agent.run_sync)(prompt).output)


def run_branch(self: Any, context: Context) -> Any:
    """Run `@task.llm_branch`: its `execute`. The model chooses among the downstream tasks, in a fixed order."""
    choice: Any = Enum("DownstreamTasks", {task_id: task_id for task_id in sorted(self.downstream_task_ids)})  # type: ignore[misc]
    self.agent = Agent(
        self.model,
        system_prompt=self.system_prompt,
        output_type=list[choice] if self.allow_multiple_branches else choice,
    )
    self.agent.output_validator(output_to_task_ids)
    return self.do_branch(context, run_agent(self, context))


AgentDecoratedOperator.execute = run_agent
LLMBranchDecoratedOperator.execute = run_branch


def llm_kwargs(conn_id: str, **layers: Any) -> dict[str, Any]:
    """Return what `@task.llm` and `@task.llm_branch` need to call the model of a connection."""
    return {**QUIET, "model": connection_model(conn_id, **layers)}
