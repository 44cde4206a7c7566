"""A worker that is killed at a chosen call, for tests of what the next try finds."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest


class Killed(BaseException):
    """Stands for kill -9: nothing in the process runs on."""


def killing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, when: str) -> None:
    """Let the process be killed before or after this call of the owner's function."""
    real, calls = getattr(owner, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] != call:
            return real(*args, **kwargs)
        if when == "before":
            raise Killed
        if asyncio.iscoroutinefunction(real):

            async def answered() -> Any:
                await real(*args, **kwargs)
                raise Killed

            return answered()
        real(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(owner, name, dying)


def kill_tries(monkeypatch: pytest.MonkeyPatch, tries: dict[str, list[Any]]) -> None:
    """Have the process of a task killed (-9) in its first tries, each time later.

    A try runs in a process of its own, as on a worker, while Airflow's API stays here, as on its server.

    :param tries: by task id, for each try when it is killed: after so many answers of the model, `"end"` (after all of
        them, before its result is an XCom), or before or after a tool with an effect, as `("before", "its name")`. The
        tries that follow are not killed.
    """
    from airflow.sdk.execution_time import task_runner

    real = task_runner._execute_task

    def execute(context: Any, ti: Any, log: Any) -> Any:
        after = tries.get(ti.task_id, [])[ti.try_number - 1 : ti.try_number]
        if not after:
            return real(context=context, ti=ti, log=log)
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            assert status == signal.SIGKILL, f"{ti.task_id} was not killed {after}, but ended with {status}"
            raise RuntimeError("The worker was killed.")
        try:
            from include.ai import usage
            from include.ai.reuse import ReusingModel

            threading.Timer(120, os._exit, (1,)).start()
            asyncio.set_event_loop(asyncio.new_event_loop())  # the threads of the other one are not in this process
            usage.push_usage = lambda *_: None  # neither are those of the API
            task_runner.SUPERVISOR_COMMS = SimpleNamespace(send=partial(_answer_nothing, dies=after[0] == "end"))
            match after[0]:
                case int(answers):
                    _die_after(ReusingModel, answers)
                case str(when), str(tool):
                    _die_at_tool(when, tool)
            real(context=context, ti=ti, log=log)
            if after[0] == "end":
                _die()
        finally:
            traceback.print_exc()
            os._exit(1)

    monkeypatch.setattr(task_runner, "_execute_task", execute)


def _answer_nothing(msg: Any = None, *_: Any, dies: bool) -> None:
    """Stand for Airflow's API in a process that is to die, at the latest when it sends an XCom."""
    if dies and type(msg).__name__ == "SetXCom":
        _die()


def _die_after(model: Any, answers: int) -> None:
    request, count = model.request, [0]

    async def dying(*args: Any, **kwargs: Any) -> Any:
        response = await request(*args, **kwargs)
        count[0] += 1
        if count[0] == answers:
            _die()
        return response

    model.request = dying


def _die_at_tool(when: str, name: str) -> None:
    from include.ai import effects

    run: Any = effects._run

    async def dying(tool: Any, *args: Any) -> Any:
        if tool.__name__ != name:
            return await run(tool, *args)
        if when == "after":
            await run(tool, *args)
        return _die()

    effects._run = dying


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
