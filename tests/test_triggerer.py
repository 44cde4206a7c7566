"""What triggers ask Airflow, against the real end of its protocol that is in the triggerer."""

from __future__ import annotations

import asyncio
import re
import socket

import msgspec
from airflow.jobs.triggerer_job_runner import TriggerCommsDecoder
from airflow.sdk.execution_time.comms import GetVariable, VariableResult, _RequestFrame, _ResponseFrame

from include.common.triggerer import ask_airflow
from tests.conftest import PROJECT


async def answer_slowly(supervisor: socket.socket, may_answer: asyncio.Event, asked: asyncio.Event) -> None:
    """What Airflow's supervisor does: answer each request for a variable, with its name."""
    reader, writer = await asyncio.open_connection(sock=supervisor)
    decoder = msgspec.msgpack.Decoder(_RequestFrame)
    while True:
        request = decoder.decode(await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big")))
        asked.set()
        await may_answer.wait()
        key = request.body["key"]
        writer.write(_ResponseFrame(request.id, VariableResult(key=key, value=f"of {key}").model_dump()).as_bytes())


def test_the_answer_to_a_trigger_that_is_cancelled_is_not_taken_for_that_to_another():
    async def triggers() -> str:
        ours, supervisor = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        comms = TriggerCommsDecoder(socket=ours, async_reader=reader, async_writer=writer)
        if hasattr(comms, "start_reader"):  # Airflow 3.3
            await comms.start_reader()
        may_answer, asked = asyncio.Event(), asyncio.Event()
        answering = asyncio.create_task(answer_slowly(supervisor, may_answer, asked))

        cancelled = asyncio.create_task(ask_airflow(comms.send, GetVariable(key="one")))
        await asked.wait()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        may_answer.set()
        other = await ask_airflow(comms.send, GetVariable(key="two"))
        answering.cancel()
        return other.value

    assert asyncio.run(asyncio.wait_for(triggers(), 60)) == "of two"


def test_nothing_of_a_trigger_asks_airflow_in_another_way():
    asking = re.compile(r"sync_to_async|aget_connection|aget_variable|SUPERVISOR_COMMS")
    found = {
        path.relative_to(PROJECT).as_posix()
        for path in PROJECT.glob("include/**/*.py")
        if asking.search(path.read_text())
    }
    assert found == {"include/common/triggerer.py"}
