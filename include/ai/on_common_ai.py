"""apache-airflow-providers-common-ai, for `include.ai`.

Two things happen right before a task runs. It gets this project's model, whose errors say what to set and whether a
retry can help, and whose usage is counted. And its template rendering ends (see `include.common.templates`): the
provider would render all fields a second time when they contain the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.ai.hooks.pydantic_ai import PydanticAIHook
from airflow.providers.common.ai.operators.llm_branch import LLMBranchOperator

from include.ai.model import connection_model
from include.ai.output import check_output, error_first, output_to_json, output_to_task_ids
from include.common.templates import end_rendering

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic_ai import Agent
    from pydantic_ai.models import Model


class ConnectionHook(PydanticAIHook):
    """The provider's hook, for agents that call this project's model and answer in plain JSON.

    :param to_xcom: converts the output to what is stored in XCom.
    """

    def __init__(self, llm_conn_id: str, to_xcom: Callable[[Any], Any], layers: dict[str, Any]) -> None:
        super().__init__(llm_conn_id)
        self.to_xcom = to_xcom
        self.layers = layers

    def get_conn(self) -> Model:
        """Return the model of the connection."""
        return connection_model(self.llm_conn_id, **self.layers)

    def create_agent(self, *args: Any, **kwargs: Any) -> Agent[object, Any]:
        """Create the provider's agent, with this project's checks of its output."""
        agent: Agent[object, Any] = super().create_agent(*args, **kwargs)
        agent.output_validator(check_output)
        agent.output_validator(self.to_xcom)
        agent.run_sync = error_first(agent.run_sync)  # type: ignore[method-assign]
        return agent


def prepare(context: Context, **layers: Any) -> None:
    """Give the task its model before it runs, and end the rendering of templates."""
    operator: Any = context["task"]
    to_xcom = output_to_task_ids if isinstance(operator, LLMBranchOperator) else output_to_json
    operator.llm_hook = ConnectionHook(operator.llm_conn_id, to_xcom, layers)
    end_rendering(context)


def llm_kwargs(conn_id: str, **layers: Any) -> dict[str, Any]:
    """Return what `@task.llm` and `@task.llm_branch` need to call the model of a connection."""
    connection_model(conn_id, **layers)  # so that a wrong argument fails when the DAG is parsed
    return {"llm_conn_id": conn_id, "serialize_output": True, "pre_execute": partial(prepare, **layers)}
