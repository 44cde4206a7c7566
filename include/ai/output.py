"""What happens to a model's output before it is stored in XCom, and to the errors of its call."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowException
from pydantic_ai import ModelRetry, RunContext
from pydantic_ai.exceptions import AgentRunError
from pydantic_core import to_jsonable_python

T = TypeVar("T")


def error_first(run: Callable[..., T]) -> Callable[..., T]:
    """Wrap a function that runs an agent so that tracebacks begin here: 40 frames of libraries hide the message."""

    @wraps(run)
    def run_agent(*args: Any, **kwargs: Any) -> T:
        try:
            return run(*args, **kwargs)
        except (AirflowException, AgentRunError) as error:
            raise error.with_traceback(None) from None

    return run_agent


def check_output(ctx: RunContext[Any], output: Any) -> Any:
    """Return the output if its own `check` (see `include.ai.BaseModel`) accepts it, given the prompt's metadata.

    :raises ModelRetry: it does not, so the model is asked again.
    """
    if hasattr(output, "check") and not isinstance(ctx.prompt, str) and ctx.prompt:
        output.check(getattr(ctx.prompt[0], "metadata", None))
    return output


def output_to_json(output: Any) -> Any:
    """Return the output as plain JSON: models become dicts, enums their values, dates ISO 8601 strings."""
    return to_jsonable_python(output, by_alias=False)


def output_to_task_ids(choice: Any) -> Any:
    """Return the id of the chosen task, or the ids where several may be chosen.

    :raises ModelRetry: none is chosen, so the model is asked again.
    """
    if choice == []:
        raise ModelRetry("Choose at least one.")
    return output_to_json(choice)
