"""Subjects: LLM tasks of DAGs, unchanged, with the cases to ask them about.

The prompt, the output schema, the tools and the model are those of the task, and its own function builds the question.
So what is measured is what runs. The DAG's file is imported when a subject is loaded, not at parse.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk.execution_time.context import set_current_context
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.test import TestModel
from pydantic_ai.settings import ModelSettings
from pydantic_core import to_jsonable_python

from include.ai import COMMON_AI, LLM_CONN_ID, active_sdk
from include.ai.output import check_output
from include.ai.prompts import prompt_of
from include.common.shown import shown_text
from include.evaluation.cases import Case, read_cases, some
from include.evaluation.scorers import Asked, Scorer


def by_param(name: str) -> Callable[[Sequence[Any]], list[Asked]]:
    """Return an `ask` for tasks that read the case's input from this param of the run."""
    return lambda inputs: [Asked(params={name: each}) for each in inputs]


def by_argument(name: str, key: str) -> Callable[[Sequence[Any]], list[Asked]]:
    """Return an `ask` for mapped tasks whose function takes the input as `key` of a row; other columns are empty."""
    return lambda inputs: [Asked(arguments={name: defaultdict(str, {key: each})}) for each in inputs]


@dataclass(frozen=True)
class Subject:
    """An LLM task of a DAG, and how to evaluate it.

    :param dag_id: the DAG, and the name of its file.
    :param task_id: a task of `@task.llm`, `@task.llm_branch` or `@task.agent`.
    :param cases: the file of its cases.
    :param ask: given the inputs of cases, returns what the task is given for each.
    :param scorer: scores an answer.
    :param rubric: what a judge checks besides; empty for none.
    :param labelled: replies that people labelled by the rubric, to measure the judge: see `agreement`.
    :param loss: the loss of passed cases that the gate must find: 0.1 for 10 points. It sets how many cases are needed.
    """

    name: str
    dag_id: str
    task_id: str
    cases: Path
    ask: Callable[[Sequence[Any]], list[Asked]]
    scorer: Scorer
    rubric: str = ""
    labelled: Path | None = None
    loss: float = 0.1

    def read_cases(self, limit: int | None = None) -> list[Case]:
        """Read the cases, or `limit` of them, evenly from the whole file.

        :raises AirflowFailException: see `include.evaluation.cases.read_cases`.
        """
        return some(read_cases(self.cases, self.scorer.fields), limit)

    def file(self, folder: Path) -> Path | None:
        """Find the DAG's file below the folder; None if it is not there."""
        return min(folder.rglob(f"{self.dag_id}.py"), default=None)


@dataclass(frozen=True)
class LLMTask:
    """What a task sends to a model.

    :param function: builds the prompt.
    :param conn_id: the connection to the model.
    """

    agent: Agent[None, Any]
    function: Callable[..., Any]
    conn_id: str

    def prompt(self, asked: Asked) -> Any:
        """Build the prompt, as the task does in a run with these params."""
        ti = SimpleNamespace(map_index=0)  # mapped tasks name themselves by it
        context: Any = {"params": dict(asked.params), "run_id": "evaluation", "ti": ti}
        with set_current_context(context):
            return self.function(**asked.arguments)

    async def version(self, prompt: Any) -> str:
        """Return the fingerprint of what a request holds besides the question, as the ledger has it."""
        model = _Looking()
        with suppress(_Seen):
            await self.agent.run(prompt, model=model)
        return model.prompt


class _Seen(Exception):
    """The request was read, and is not sent."""


class _Looking(TestModel):
    """A model that reads the request and does not answer."""

    prompt = ""

    async def request(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> ModelResponse:
        self.prompt = prompt_of(messages, parameters)
        raise _Seen


def load_task(file: Path, dag_id: str, task_id: str) -> LLMTask:
    """Load a task from the file of its DAG.

    :raises AirflowFailException: the file cannot be imported, or has no such DAG or task, or it asks no model.
    """
    where = f"{file}, task {task_id!r}"
    try:
        dag = getattr(load_module(file), dag_id)()
    except Exception as error:
        raise AirflowFailException(
            f"{file} cannot be imported, or has no DAG {dag_id!r}: {shown_text(error)}"
        ) from None
    if task_id not in dag.task_dict:
        raise AirflowFailException(f"{where}: there is no such task. There are: {', '.join(dag.task_ids)}.")
    operator = dag.get_task(task_id)
    settings: Mapping[str, Any] = operator.partial_kwargs if operator.is_mapped else vars(operator)
    model = settings["agent"].model if "agent" in settings else settings.get("model")  # airflow-ai-sdk
    conn_id: str = str(settings.get("llm_conn_id") or getattr(model, "conn_id", LLM_CONN_ID))
    agent = _agent(operator, settings)
    if agent is None:
        raise AirflowFailException(f"{where}: it asks no model.")
    agent.output_validator(check_output)
    return LLMTask(agent, operator.python_callable, conn_id)


def load_module(file: Path) -> Any:
    """Import a DAG's file by its path, also if it was imported before."""
    name = f"evaluated_{file.stem}"
    module = sys.modules[name] = ModuleType(name)  # where pydantic looks up the types of a module's models
    SourceFileLoader(name, str(file)).exec_module(module)
    return module


def _agent(operator: Any, settings: Mapping[str, Any]) -> Agent[None, Any] | None:
    """Return the agent that the task runs."""
    output_type = settings.get("output_type") or str
    if "branch" in operator.task_type.lower():
        choice: Any = Enum("DownstreamTasks", {task_id: task_id for task_id in sorted(operator.downstream_task_ids)})  # type: ignore[misc]
        output_type = list[choice] if settings.get("allow_multiple_branches") else choice
    elif "agent" in settings:  # airflow-ai-sdk
        agent: Agent[None, Any] = settings["agent"]
        return agent
    if "system_prompt" not in settings:
        return None
    said = {"instructions" if active_sdk() == COMMON_AI else "system_prompt": settings["system_prompt"]}
    return Agent(output_type=output_type, toolsets=settings.get("toolsets") or (), **said)


def plain(prompt: Any) -> str:
    """Return a prompt as one text."""
    parts = [prompt] if isinstance(prompt, str) else prompt
    return "\n".join(part if isinstance(part, str) else str(to_jsonable_python(part)["content"]) for part in parts)
