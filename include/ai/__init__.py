"""The one place that knows the AI SDK.

A DAG imports its task settings, its output base class and its wrapper for text from outside from here, so that it runs
unchanged on either SDK: airflow-ai-sdk (Airflow 3.1) or apache-airflow-providers-common-ai (Airflow 3.3).

    @task.llm(**llm_kwargs(), system_prompt="...", output_type=TicketAnalysis)
    @task.llm_branch(**llm_kwargs("small_model"), system_prompt="...", allow_multiple_branches=True)
    @task.agent(**agent_kwargs(system_prompt="...", tools=[search_market_facts]))  # from include.ai.agents

The model comes from an Airflow connection, by default `pydanticai_default`, which is read at the first call.
"""

from __future__ import annotations

from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import pydantic
from airflow.sdk import task
from pydantic_ai.messages import TextContent

from include.common.task_defaults import LLM_TASK
from include.common.text import whole_characters

LLM_CONN_ID = "pydanticai_default"
AIRFLOW_AI_SDK = "airflow_ai_sdk"
COMMON_AI = "airflow.providers.common.ai"


def active_sdk() -> str:
    """Return the package that registered `task.llm`: `AIRFLOW_AI_SDK` or `COMMON_AI`.

    :raises ImportError: neither is installed, both are, or another package has registered it.
    """
    registered_by = getattr(getattr(task, "llm", None), "__module__", "")
    installed = [package for package in (AIRFLOW_AI_SDK, COMMON_AI) if find_spec(package)]
    if len(installed) == 1 and registered_by.startswith(f"{installed[0]}."):
        return installed[0]
    raise ImportError(
        "One AI SDK is needed: airflow-ai-sdk (Airflow 3.1) or apache-airflow-providers-common-ai (Airflow 3.2 and "
        f"later). Installed: {' and '.join(installed) or 'none'}. @task.llm comes from: {registered_by or 'none'}."
    )


if active_sdk() == COMMON_AI:
    from include.ai import on_common_ai as sdk
else:
    from include.ai import on_airflow_ai_sdk as sdk  # type: ignore[no-redef]


class BaseModel(pydantic.BaseModel):
    """Base class for what a model is asked to return. It is stored in XCom as plain JSON (a dict).

    A validation error does not quote the model's answer, so that the answer does not reach the log.
    """

    model_config = pydantic.ConfigDict(hide_input_in_errors=True)

    def check(self, metadata: Any) -> None:
        """Check more than the answer's form, in a subclass that overrides this.

        :param metadata: what `untrusted` attached to the prompt.
        :raises pydantic_ai.ModelRetry: the answer is refused; the model is asked again, with this error's message.
        """


def llm_kwargs(
    conn_id: str = LLM_CONN_ID, budget_usd: float | None = None, reuse: str | timedelta = "retries"
) -> dict[str, Any]:
    """Return keyword arguments for `@task.llm` and `@task.llm_branch`: the model, and retries, time-out and pool.

    :param conn_id: the connection to the model.
    :param budget_usd: what a task instance may spend in all its tries; None for the connection's budgets only.
    :param reuse: who may reuse a paid answer to the same call: the "retries" of the task instance, all tasks of the
        "run", all tasks within a timedelta, or, with "try", none. A cleared task asks again.
    """
    return {**LLM_TASK, **sdk.llm_kwargs(conn_id, budget_usd=budget_usd, reuse=reuse)}


def untrusted(text: str, metadata: Any = None) -> list[TextContent]:
    """Return text from outside as a prompt that is never rendered as a template.

    The model gets the text unchanged, except that lone surrogates, which no request can contain, are replaced.

    :param metadata: what `BaseModel.check` needs to check the answer; the model does not see it.
    """
    return [TextContent(content=whole_characters(text), metadata=metadata)]
