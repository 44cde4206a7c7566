"""What a trigger asks Airflow: a connection, or the state of a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


async def ask_airflow(
    question: Callable[Arguments, Answer], *args: Arguments.args, **options: Arguments.kwargs
) -> Answer:
    """Call, from a trigger, what asks Airflow's API, without holding up the other triggers.

    The call goes on to its end when the trigger is cancelled meanwhile. Cut off, it would leave an answer that nobody
    reads, which Airflow 3.1 takes for that to the next question of any trigger: then the whole triggerer ends.

    :raises Exception: what the call raises.
    """
    from asgiref.sync import sync_to_async

    return await asyncio.shield(asyncio.ensure_future(sync_to_async(question)(*args, **options)))
