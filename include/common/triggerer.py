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
    """Call, from a trigger, a function that asks Airflow's API, without blocking the other triggers.

    The call runs to its end even if the trigger is cancelled. If it were cut off, its answer would stay unread, and
    Airflow 3.1 would take it for the answer to the next question of any trigger: the whole triggerer would end.

    :raises Exception: what the call raises.
    """
    from asgiref.sync import sync_to_async

    return await asyncio.shield(asyncio.ensure_future(sync_to_async(question)(*args, **options)))
