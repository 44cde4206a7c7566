"""Inputs that are made to take long or much memory: texts, documents, answers and servers.

The oracle is the computing time of a process of its own (`include.rag.bounded`), which ends it: so no test hangs, and
none depends on how busy the machine is.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_ai import Agent

from include.ai import connection
from include.ai.embeddings import Embedder
from include.ai.model import connection_model
from include.ai.rate_limit import LONGEST_PAUSE_S, RateLimit, _until_free, _usage
from include.common.provider_http import ProviderClient
from include.jobs import service as jobs_service
from include.jobs.service import openai_service, task_error
from include.rag import bounded
from include.rag.bounded import UnreadableDocument
from include.rag.formats import FORMATS
from tests.conftest import KEY, model_connection

pytestmark = pytest.mark.one_stack

LONG = 200_000
TEXTS = r"0 a a. a@ a@a. (0 a: a:// ://@ \ \u \ud800 ` < [ ]( ![a]( http://a www.a <!-- & | ~~ - é 😀"
TEXT_UNITS = [*TEXTS.split(), *" \n\u2028", "0 ", "+1 ", "< passage", "a\n\n"]
TEXT_FUNCTIONS = [
    "include.common.personal_data.mask_personal_data",
    "include.common.shown.shown_text",
    "include.common.shown.shown_url",
    "include.common.text.clean_json",
    "include.common.storage.name_on_storage",
    "include.common.markdown.as_markdown_text",
    "include.human_review.verbatim",
    "include.rag.answers._fence",
]
MARKDOWN_UNITS = r"# > - ``` ` [ ]( ![ <!-- |a * _ **a &# \ 1."
HTML_UNITS = (
    "<!-- <p a=1 <ul><li> <div> </p> &#1 &amp; <table><tr><td> <h1>a <![CDATA[ <a/href='#a'>a</a> <nav><main> <script> "
    "' \" \0 ``` | <svg><title>"
)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set how many seconds of computing a call may take."""
    return lambda number: monkeypatch.setattr(bounded, "MOST_CPU_SECONDS", number)


# Functions that a task calls itself, on text from outside: linear in its length


@pytest.mark.parametrize("function", TEXT_FUNCTIONS)
def test_no_text_takes_a_task_long(seconds, function):
    seconds(10)
    for unit in TEXT_UNITS:
        bounded.call("a file", function, unit * (LONG // len(unit)))


# Documents, which a process of its own reads

UNITS = {
    ".html": HTML_UNITS.split(),
    ".md": [*MARKDOWN_UNITS.split(), "# a\n", "\n---\n", "```\n", "- ", "1. "],
    ".txt": ["0", "a ", "\n", "\r", "\u2028", "a\n\n"],
    ".csv": ['"', ",", ";", "\t", "a,", '"a"\n', "\n", "\r"],
    ".pdf": ["%PDF-1.4\n", "1 0 obj<<", "[", "(", "endobj\n", "stream\n", "xref\n", "<</Type/Page", "\0"],
    ".docx": ["PK\x03\x04", "\0", "a"],
}


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix = draw(st.sampled_from(sorted(UNITS)))
    units = st.sampled_from(UNITS[suffix])
    parts = draw(st.lists(st.tuples(units, st.sampled_from([1, 50, 20_000])), min_size=1, max_size=4))
    around = draw(st.lists(units, min_size=0, max_size=2))
    text = "".join([*around, *(unit * count for unit, count in parts), *around])
    return suffix, text.encode()[:200_000]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents())
def test_every_document_is_read_or_refused_in_its_time_and_so_is_the_next(document):
    suffix, data = document
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "MOST_CPU_SECONDS", 5)
        with suppress(UnreadableDocument):
            _, text, _ = bounded.call("a file", FORMATS[suffix][1], data)
            assert len(text) < 20 * len(data) + 1000
            bounded.call("a file", "include.rag.formats.cut", text, FORMATS[suffix][0], 800, 100)


@pytest.mark.parametrize(
    "page",
    [b"<!--" * 100_000, b"<p " + b"a=1 " * 4_875_000 + b">x"],
    ids=["400 kB of <!--", "19.5 MB of attributes"],
)
def test_pages_that_took_minutes_or_gigabytes_are_read_within_their_bounds(seconds, page):
    seconds(60)
    with suppress(UnreadableDocument):
        bounded.call("a file", "include.rag.web_pages.read_page", page)
    assert bounded.call("a file", "include.rag.web_pages.read_page", b"<h1>A</h1>").title == "A"


# Servers

CALLS = ["chat", "embeddings", "jobs"]


@contextmanager
def dripping(head: bool) -> Iterator[str]:
    """The URL of a server that sends its answer byte by byte and never comes to its end, or that of its `head`."""
    ended = threading.Event()

    def drip(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.recv(1 << 16)
            lines = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            client.sendall(lines if head else lines + b"Content-Length: 1000000\r\n\r\n")
            while not ended.wait(0.02):
                client.sendall(b"X" if head else b" ")

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=[listener.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        ended.set()


@pytest.mark.parametrize("head", [True, False], ids=["headers", "body"])
@pytest.mark.parametrize("kind", CALLS)
def test_a_server_that_drips_holds_no_call_longer_than_its_time_out(monkeypatch, storage, kind, head):
    """Each read of it is far within the time-out: without a deadline for the whole, the call would not end."""
    monkeypatch.setattr(connection, "CALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(jobs_service, "CALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr("include.ai.repeats.PAUSES_S", ())
    call = {
        "chat": lambda: Agent(connection_model("a_model")).run_sync("hello"),
        "embeddings": lambda: Embedder("embeddings").embed_query("hello"),
        "jobs": lambda: asyncio.run(retrieve_job()),
    }[kind]
    with dripping(head) as url:
        monkeypatch.setenv("AIRFLOW_CONN_A_MODEL", model_connection(url))
        monkeypatch.setenv("AIRFLOW_CONN_EMBEDDINGS", model_connection(url, "openai:text-embedding-3-small"))
        monkeypatch.setenv("AIRFLOW_CONN_A_SERVICE", json.dumps({"conn_type": "openai", "host": url, "password": KEY}))
        with pytest.raises(AirflowException, match=r"no answer"):
            call()


async def retrieve_job() -> None:
    service = openai_service("a_service")
    try:
        await service.client(retries=0).fine_tuning.jobs.retrieve("job")
    except Exception as error:
        raise task_error(service, "looking", error) from None


def test_waiting_for_the_accounts_turn_is_no_part_of_a_calls_time():
    import httpx2

    async def wait(_: Any) -> None:
        await asyncio.sleep(0.3)

    async def call() -> int:
        transport = httpx2.MockTransport(lambda _: httpx2.Response(200))
        async with ProviderClient({"request": [wait]}, timeout=0.1, transport=transport) as client:
            return (await client.get("http://provider")).status_code

    assert asyncio.run(call()) == 200


# What a provider says of its limits, in headers and answers: of use, or ignored, and never an error

numbers = st.floats().map(str) | st.integers().map(str) | st.sampled_from(["", "1_0", "١", "1e999", "-1", "nan", "0x1"])
resets = st.lists(st.tuples(st.text("0123456789.", max_size=30), st.sampled_from(["ms", "s", "m", "h", "d", ""]))).map(
    lambda parts: "".join(amount + unit for amount, unit in parts)
)


@given(numbers, numbers, resets | st.text(max_size=30), st.floats(0, 1e6))
def test_no_rate_header_fails_the_call_that_it_came_with_or_stops_the_next_for_long(limit, remaining, reset, needed):
    headers = {
        "x-ratelimit-limit-tokens": limit,
        "x-ratelimit-remaining-tokens": remaining,
        "x-ratelimit-reset-tokens": reset,
    }
    pause = _until_free(headers, "tokens", needed)
    paced = RateLimit()
    paced._pause(pause)

    assert pause >= 0
    assert 0 <= paced._paused_until < 1e12 + LONGEST_PAUSE_S


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@given(
    json_values
    | st.fixed_dictionaries(
        {
            "usage": st.dictionaries(
                st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"]), json_values
            )
        }
    )
)
def test_no_count_of_tokens_fails_the_call_that_it_came_with(answer):
    found = _usage(json.dumps(answer).encode())
    assert found is None or 0 <= found[1] <= found[0] < float("inf")


def test_an_answer_that_is_nested_without_end_has_no_count_of_tokens():
    assert _usage(b"[" * 1_000_000) is None
