"""Ask a subject's task about its cases: many at once, each answer paid once, within a budget.

Answers are stored as those of any task (see `include.ai.reuse`), separately for each trial of a case. So a retry or a
later run asks only for what is missing, and another label or scorer costs nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic_ai import Agent
from pydantic_ai.exceptions import ContentFilterError, UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.usage import UsageLimits

from include.ai import LLM_CONN_ID
from include.ai.layers import LayeredModel
from include.ai.limited_model import TaskUsage
from include.ai.model import RequestRefused, TextTooLong
from include.ai.output import output_to_json
from include.ai.reuse import RUN
from include.common.prices import shown_usd, tokens_cost
from include.evaluation.agreement import FIELDS, Agreement, measure_agreement
from include.evaluation.cases import Case, as_text, read_cases, some
from include.evaluation.judge import JUDGE_PROMPT, Judgement, judge_prompt
from include.evaluation.results import Result, Trial
from include.evaluation.scorers import Asked, Given
from include.evaluation.subjects import LLMTask, Subject, load_task, plain
from include.evaluation.trial_models import DAG_ID, BoundedModel, TrialAttempt, TrialModel

# Cases that are asked about at the same time. The connection keeps the account's limits.
AT_ONCE = 4
# Requests for one answer of an agent. One that needs more counts as not ending.
MOST_REQUESTS = 12


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    :param conn_id: the connection to the model; None for the task's own.
    :param judge_conn_id: the connection to the judge.
    :param limit: how many cases to ask about, evenly from the whole file; None for all.
    :param trials: how often each case is asked.
    :param budget_usd: what the subject may cost, over all tries of a run; None for no limit. Answers that another run
        paid cost nothing.
    :param reuse_days: how old an answer of another run may be to be reused; None to reuse none.
    """

    conn_id: str | None = None
    judge_conn_id: str = LLM_CONN_ID
    limit: int | None = None
    trials: int = 1
    budget_usd: float | None = None
    reuse_days: float | None = 7


async def evaluate(subject: Subject, dags: Path, run_id: str, settings: Settings) -> Result:
    """Ask about the subject's cases and score the answers.

    :param dags: the folder with the DAG's file, at any depth.
    :param run_id: answers of the same run are paid once, for any `reuse_days`.
    :raises AirflowFailException: a case, the DAG or the connection is at fault, or the budget is used up.
    :raises AirflowException: the provider fails; a retry continues.
    """
    file = subject.file(dags)
    if file is None:
        raise AirflowFailException(f"Subject {subject.name!r}: there is no file {subject.dag_id}.py below {dags}.")
    cases = subject.read_cases(settings.limit)
    task = load_task(file, subject.dag_id, subject.task_id)
    asked = subject.ask([case.input for case in cases])
    prompts = [task.prompt(each) for each in asked]
    evaluation = _Evaluation(subject, task, settings, run_id)
    work = [
        evaluation.trial(number, *each)
        for each in zip(cases, asked, prompts, strict=True)
        for number in range(settings.trials)
    ]
    agreement = None
    try:
        done = await asyncio.gather(*work, return_exceptions=True)
        if not evaluation.stopped:
            agreement = await evaluation.agreement()
    finally:
        evaluation.usage.publish()
    for failure in done:
        if isinstance(failure, BaseException):
            raise failure
    by_case = iter(done)
    trials: Any = {case.key: [next(by_case) for _ in range(settings.trials)] for case in cases}
    return Result(
        subject=subject.name,
        version=await task.version(prompts[0]),
        model=evaluation.model.source.model_id,
        run_id=run_id,
        at=datetime.now(UTC),
        trials=trials,
        answers=evaluation.answers,
        reused=evaluation.reused,
        paid_usd=evaluation.paid_usd,
        agreement=agreement,
    )


class _Evaluation:
    """The evaluation of one subject. `paid_usd` is what this run pays; answers of other runs are `reused`."""

    def __init__(self, subject: Subject, task: LLMTask, settings: Settings, run_id: str) -> None:
        self.subject, self.task, self.settings, self.run_id = subject, task, settings, run_id
        self.turn = asyncio.Semaphore(AT_ONCE)
        self.usage = TaskUsage()
        self.answers = self.reused = 0
        self.paid_usd: float | None = 0.0
        self.stopped: Exception | None = None
        self.reuse = RUN if settings.reuse_days is None else timedelta(settings.reuse_days)
        self.attempts = [TrialAttempt(run_id, number + 1) for number in range(settings.trials)]
        # Without the connection's fallbacks, whose answers would count as this model's.
        self.model = self._model(settings.conn_id or task.conn_id)
        self.judge_model = self._model(settings.judge_conn_id) if subject.rubric else None
        self.judge: Agent[None, Judgement] = Agent(system_prompt=JUDGE_PROMPT, output_type=Judgement)

    def _model(self, conn_id: str) -> LayeredModel:
        model = BoundedModel(conn_id, self.usage, self._check)
        source = model.source
        cost = tokens_cost(source.conn_id, source.layer_args, source.model_id.partition(":")[2], 1, 1)
        if self.settings.budget_usd is not None and cost is None:
            raise _unpriced(source.model_id)
        return model

    async def trial(self, number: int, case: Case, asked: Asked, prompt: Any) -> Trial:
        """Ask about a case for the n-th time (from 0), or take the stored answer, and score it."""
        async with self.turn:
            try:
                return await self._trial(number, case, asked, prompt)
            except Exception as error:
                self.stopped = self.stopped or error
                raise

    async def _trial(self, number: int, case: Case, asked: Asked, prompt: Any) -> Trial:
        trial, started = Trial(), time.monotonic()

        def count(response: ModelResponse) -> None:
            trial.seconds += (response.metadata or {}).get("seconds", 0.0)
            self._count(trial, response)

        model = TrialModel(self.model, self.reuse, self.attempts[number], count)
        limits = UsageLimits(request_limit=MOST_REQUESTS)
        try:
            run = await self.task.agent.run(prompt, model=model, usage_limits=limits)
            trial.output = output_to_json(run.output)
            tools = {tool for toolset in self.task.agent.toolsets for tool in getattr(toolset, "tools", ())}
            given = Given(trial.output, _calls(run.all_messages(), tools))
            trial.metrics = self.subject.scorer(case.expected, given, asked)
            if self.judge_model:
                judge = TrialModel(self.judge_model, self.reuse, self.attempts[number], partial(self._count, trial))
                if (passed := await self._judge(judge, plain(prompt), as_text(trial.output))) is not None:
                    trial.metrics["judged"] = float(passed)
        except UsageLimitExceeded:
            trial.error = "does not end"
        except TextTooLong:
            trial.error = "too long"
        except (RequestRefused, ContentFilterError):
            trial.error = "refused"
        except UnexpectedModelBehavior:
            trial.error = "invalid answer"
        trial.seconds = round(trial.seconds or time.monotonic() - started, 3)
        return trial

    async def agreement(self) -> Agreement | None:
        """Measure how often the judge agrees with people; None without a judge or labelled replies."""
        if not (self.judge_model and self.subject.labelled):
            return None
        cases = some(read_cases(self.subject.labelled, FIELDS), self.settings.limit)
        model = TrialModel(self.judge_model, self.reuse, self.attempts[0], partial(self._count, Trial()))

        async def judge(ticket: str, reply: str) -> bool | None:
            async with self.turn:
                return await self._judge(model, ticket, reply)

        return await measure_agreement(self.judge_model.source.model_id, cases, judge)

    async def _judge(self, model: TrialModel, question: str, answer: str) -> bool | None:
        """Ask the judge; None if it gives no judgement. Then the metric is missing: it is not the answer's fault."""
        try:
            judged = await self.judge.run(judge_prompt(question, answer, self.subject.rubric), model=model)
        except (RequestRefused, UnexpectedModelBehavior):
            return None
        return judged.output.passed

    def _count(self, trial: Trial, response: ModelResponse) -> None:
        usage, reused_from = response.usage, (response.metadata or {}).get("reused_from")
        cost = None if usage.cost is None else float(usage.cost)
        trial.input_tokens += usage.input_tokens
        trial.output_tokens += usage.output_tokens
        trial.cost_usd = _sum(trial.cost_usd, cost)
        self.answers += 1
        if reused_from and (reused_from["dag_id"], reused_from["run_id"]) != (DAG_ID, self.run_id):
            self.reused += 1
        else:  # also what an earlier try of this run paid, as the budget is the run's
            self.paid_usd = _sum(self.paid_usd, cost)

    def _check(self) -> None:
        """Raise an error if no further call may be made."""
        if self.stopped:  # the evaluation has failed, so nothing more is paid
            raise self.stopped
        if (budget := self.settings.budget_usd) is None:
            return
        if self.paid_usd is None:
            raise _unpriced(self.model.source.model_id)
        if self.paid_usd >= budget:
            raise AirflowFailException(
                f"Subject {self.subject.name!r}: its budget is used up: {shown_usd(self.paid_usd)} of "
                f"{shown_usd(budget)}. Its answers are kept: another run, or a retry with a higher budget, continues."
            )


def _sum(before: float | None, cost: float | None) -> float | None:
    return None if before is None or cost is None else before + cost


def _unpriced(model_id: str) -> AirflowFailException:
    return AirflowFailException(
        f"The price of {model_id!r} is not known, so the budget cannot be kept. Set "
        '"usd_per_million_tokens" in its connection\'s extra, or no budget.'
    )


def _calls(messages: Sequence[ModelMessage], tools: set[str]) -> list[dict[str, Any]]:
    """Return the calls of the task's own tools, in order."""
    parts = [part for message in messages if isinstance(message, ModelResponse) for part in message.parts]
    return [
        {"tool": part.tool_name, **part.args_as_dict()}
        for part in parts
        if isinstance(part, ToolCallPart) and part.tool_name in tools
    ]
