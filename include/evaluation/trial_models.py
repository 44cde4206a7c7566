"""Models for evaluations: asked within bounds, and once for the n-th trial of a case, over all runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from pydantic_ai.messages import ModelResponse

from include.ai.attempt import Attempt
from include.ai.layers import LayeredModel
from include.ai.limited_model import TaskUsage
from include.ai.reuse import ReusingModel

# The names of the asking task in the stored answers.
DAG_ID, TASK_ID = "evaluate_prompts", "evaluate"


class BoundedModel(LayeredModel):
    """A model that is asked as long as `check` allows it."""

    def __init__(self, conn_id: str, usage: TaskUsage, check: Callable[[], None]) -> None:
        super().__init__(conn_id, usage)
        self._check = check

    async def request(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Ask, or raise what `check` raises."""
        self._check()
        return await super().request(*args, **kwargs)


class TrialAttempt(Attempt):
    """Asks for the n-th trials, and finds their answers in whichever order they are asked."""

    def __init__(self, run_id: str, trial: int) -> None:
        super().__init__({"dag_id": DAG_ID, "run_id": run_id, "task_id": TASK_ID}, TASK_ID)
        self._trial = trial

    def number(self, key: str) -> int:
        """Return the trial's number: within a trial nothing is asked twice."""
        return self._trial


class TrialModel(ReusingModel):
    """The model for one trial; `count` gets each answer, new or stored."""

    def __init__(
        self,
        model: LayeredModel,
        reuse: str | timedelta,
        attempt: TrialAttempt,
        count: Callable[[ModelResponse], None],
    ) -> None:
        super().__init__(model, reuse, attempt)
        self._count_answer = count

    async def request(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Return the stored answer, or ask and store."""
        response = await super().request(*args, **kwargs)
        self._count_answer(response)
        return response
