"""Ask a subject's task about its cases: many at once, each answer paid once, within a budget.

An answer is on the project's storage before it counts. So a retry of the task goes on with what is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import ValidationError
from pydantic_ai import Agent
from pydantic_ai.exceptions import ContentFilterError, UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.usage import RunUsage, UsageLimits

from include.ai import LLM_CONN_ID
from include.ai.limited_model import TaskUsage
from include.ai.model import ConnectionModel, RequestRefused, TextTooLong
from include.ai.output import output_to_json
from include.common.prices import shown_usd
from include.common.storage import name_on_storage, read_artifact, storage_path, write_artifact
from include.evaluation.cases import Case
from include.evaluation.judge import JUDGE_PROMPT, Judgement, judge_prompt
from include.evaluation.results import FOLDER, Result, Trial
from include.evaluation.scorers import Asked, Given, Metrics
from include.evaluation.subjects import LLMTask, Subject, load_task, plain

# Cases that are asked about at the same time. The account's limits are the connection's.
AT_ONCE = 4
# The most requests for one answer of an agent. One that needs more does not end.
MOST_REQUESTS = 12


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    :param conn_id: the connection to the model; None for the task's own.
    :param judge_conn_id: that to the judge.
    :param limit: ask about so many cases, evenly from the whole file; None for all.
    :param trials: how often each case is asked.
    :param budget_usd: what the subject may cost, over all tries of a run; None for no limit.
    """

    conn_id: str | None = None
    judge_conn_id: str = LLM_CONN_ID
    limit: int | None = None
    trials: int = 1
    budget_usd: float | None = None


async def evaluate(subject: Subject, dags: Path, run_id: str, settings: Settings) -> Result:
    """Ask about the subject's cases and score the answers.

    :param dags: the folder with the DAG's file, at any depth.
    :param run_id: answers of the same run are paid once.
    :raises AirflowFailException: a case, the DAG or the connection is at fault, or the budget is used up.
    :raises AirflowException: the provider fails now; a retry goes on.
    """
    file = subject.file(dags)
    if file is None:
        raise AirflowFailException(f"Subject {subject.name!r}: there is no file {subject.dag_id}.py below {dags}.")
    cases = subject.read_cases(settings.limit)
    task = load_task(file, subject.dag_id, subject.task_id)
    asked = subject.ask([case.input for case in cases])
    prompts = [task.prompt(each) for each in asked]
    evaluation = _Evaluation(subject, task, settings, await task.version(prompts[0]), run_id)
    turn = asyncio.Semaphore(AT_ONCE)

    async def trial(number: int, case: Case, given: Asked, prompt: Any) -> Trial:
        async with turn:
            return await evaluation.trial(number, case, given, prompt)

    work = [
        trial(number, *each) for each in zip(cases, asked, prompts, strict=True) for number in range(settings.trials)
    ]
    try:
        done = await asyncio.gather(*work, return_exceptions=True)
    finally:
        evaluation.usage.publish()
    for failure in done:
        if isinstance(failure, BaseException):
            raise failure
    trials: dict[str, list[Trial]] = {}
    for number, each in enumerate(done):
        trials.setdefault(cases[number // settings.trials].key, []).append(each)  # type: ignore[arg-type]
    return Result(
        subject=subject.name,
        version=evaluation.version,
        model=evaluation.model_id,
        run_id=run_id,
        at=datetime.now(UTC),
        trials=trials,
    )


@dataclass
class _Evaluation:
    """The work on one subject."""

    subject: Subject
    task: LLMTask
    settings: Settings
    version: str
    run_id: str
    usage: TaskUsage = field(default_factory=TaskUsage)
    spent_usd: float = 0.0
    stopped: Exception | None = None

    def __post_init__(self) -> None:
        # Not a connection's fallbacks: what they answer would be counted as this model's.
        self.model = ConnectionModel(self.settings.conn_id or self.task.conn_id, self.usage)
        self.model_id = self.model.source.model_id
        self.judge: Agent[None, Judgement] | None = None
        self.judge_id = ""
        if self.subject.rubric:
            judge = ConnectionModel(self.settings.judge_conn_id, self.usage)
            self.judge = Agent(judge, system_prompt=JUDGE_PROMPT, output_type=Judgement)
            self.judge_id = judge.source.model_id

    async def trial(self, number: int, case: Case, asked: Asked, prompt: Any) -> Trial:
        """Return the stored trial, or ask."""
        identity = [self.version, self.model_id, self.judge_id, self.subject.rubric, plain(prompt), number]
        name = hashlib.sha256(json.dumps([*identity, case.expected]).encode()).hexdigest()[:32]
        folder = storage_path(FOLDER, "answers", name_on_storage(self.run_id), name_on_storage(self.subject.name))
        path = folder / f"{name}.json"
        trial = None
        with suppress(FileNotFoundError, ValidationError):  # one that cannot be read is asked again
            trial = Trial.model_validate_json(await asyncio.to_thread(read_artifact, path))
        try:
            if trial is None:
                self._check_budget()
                trial = await self._ask(case, asked, prompt)
                await asyncio.to_thread(write_artifact, path, trial.model_dump_json())
            self._spend(trial.cost_usd)
        except Exception as error:
            self.stopped = self.stopped or error
            raise
        return trial

    async def _ask(self, case: Case, asked: Asked, prompt: Any) -> Trial:
        used, started = RunUsage(), time.monotonic()
        limits = UsageLimits(request_limit=MOST_REQUESTS)
        trial = Trial()
        try:
            run = await self.task.agent.run(prompt, model=self.model, usage=used, usage_limits=limits)
            trial.output = output_to_json(run.output)
            trial.seconds = time.monotonic() - started
            tools = {tool for toolset in self.task.agent.toolsets for tool in getattr(toolset, "tools", ())}
            given = Given(trial.output, _calls(run.all_messages(), tools))
            trial.metrics = self.subject.scorer(case.expected, given, asked)
            if self.judge:
                trial.metrics |= await self._judge(self.judge, plain(prompt), trial.output, used)
        except UsageLimitExceeded:
            trial.error = "does not end"
        except TextTooLong:
            trial.error = "too long"
        except (RequestRefused, ContentFilterError):
            trial.error = "refused"
        except UnexpectedModelBehavior:
            trial.error = "invalid answer"
        except Exception:
            self.spent_usd += float(used.cost or 0)  # of the calls before the one that failed
            raise
        trial.seconds = round(trial.seconds or time.monotonic() - started, 3)
        trial.input_tokens, trial.output_tokens = used.input_tokens, used.output_tokens
        trial.cost_usd = None if used.requests and used.cost is None else float(used.cost or 0)
        return trial

    async def _judge(self, judge: Agent[None, Judgement], question: str, output: Any, used: RunUsage) -> Metrics:
        """Ask the judge. Where it gives no judgement, the metric is missing: that is not the answer's fault."""
        answer = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
        try:
            judged = await judge.run(judge_prompt(question, answer, self.subject.rubric), usage=used)
        except (RequestRefused, UnexpectedModelBehavior):
            return {}
        return {"judged": float(judged.output.passed)}

    def _spend(self, cost_usd: float | None) -> None:
        if cost_usd is None and self.settings.budget_usd is not None:
            raise AirflowFailException(
                f"The price of {self.model_id!r} is not known, so the budget cannot be kept. Set its connection's "
                'extra "usd_per_million_tokens", or no budget.'
            )
        self.spent_usd += cost_usd or 0.0

    def _check_budget(self) -> None:
        if self.stopped:  # what was not asked yet is not paid for nothing
            raise self.stopped
        if self.settings.budget_usd is not None and self.spent_usd >= self.settings.budget_usd:
            raise AirflowFailException(
                f"Subject {self.subject.name!r}: its budget is used up: {shown_usd(self.spent_usd)} of "
                f"{shown_usd(self.settings.budget_usd)}. What was answered is kept: with a higher one, a retry goes on."
            )


def _calls(messages: Sequence[ModelMessage], tools: set[str]) -> list[dict[str, Any]]:
    """Return the calls of the task's own tools, in order."""
    parts = [part for message in messages if isinstance(message, ModelResponse) for part in message.parts]
    return [
        {"tool": part.tool_name, **part.args_as_dict()}
        for part in parts
        if isinstance(part, ToolCallPart) and part.tool_name in tools
    ]
