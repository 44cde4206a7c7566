"""`.env` means the same to each program that reads it.

Docker and the Astro CLI are not here: the readers below describe what their sources do with a value without quotes
(compose-go's dotenv/parser.go, docker's opts/file.go, and pkg/airflowrt/env.go of the Astro CLI 1.45).
"""

from __future__ import annotations

import io
import json
import re
import string

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import PROJECT

pytestmark = [
    pytest.mark.one_stack,
    pytest.mark.skipif(not (PROJECT / ".env.example").exists(), reason="inside the image"),
]


def make(line: str) -> str | None:
    """`make demo` and `make start`: python-dotenv."""
    (value,) = dotenv_values(stream=io.StringIO(line)).values()
    return value


def compose(line: str) -> str | None:
    """`astro dev start`: of `$name` it makes that variable's value, which is nothing here, and of `$$` one `$`."""
    value = line.partition("=")[2].lstrip().partition(" #")[0].rstrip()
    assert value[:1] not in ("'", '"'), "a value in quotes, which this does not describe"
    return re.sub(r"\$(\$|\{\w*\}|\w+)?", lambda found: "$" if found[1] == "$" else "", value)


def standalone(line: str) -> str | None:
    """`astro dev start --standalone`: all is text, but for quotes around it."""
    value = line.strip().partition("=")[2]
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def docker(line: str) -> str | None:
    """`astro dev parse` and `astro dev pytest`, by `docker run --env-file`: all is text, quotes too."""
    return line.partition("=")[2]


READERS = (make, compose, standalone, docker)


def examples() -> list[str]:
    """Each setting of the file, with the # before it removed, as its user does."""
    lines = (PROJECT / ".env.example").read_text().splitlines()
    return [line.removeprefix("#") for line in lines if re.match(r"#?[A-Z][A-Z0-9_]*=", line)]


@pytest.mark.parametrize("reader", READERS)
def test_every_example_is_read_as_it_stands(reader):
    assert len(examples()) > 20
    for line in examples():
        assert reader(line) == line.partition("=")[2]


def is_safe(value: str) -> bool:
    """What the head of .env.example says."""
    return "$" not in value and not re.search(r"\s#", value) and value[:1] not in ("'", '"', "#", "")


@given(st.text(alphabet=string.ascii_letters + string.digits + string.punctuation + " ", min_size=1).map(str.strip))
def test_what_the_file_calls_safe_is_read_as_it_stands_by_all(value):
    if is_safe(value):
        assert {reader(f"NAME={value}") for reader in READERS} == {value}


@pytest.mark.parametrize("value", ["pa$word", "pass #word", '"in quotes"', "${HOME}"])
def test_what_it_calls_unsafe_is_read_in_more_than_one_way(value):
    readers = [reader for reader in READERS if reader is not compose or value[0] != '"']
    assert not is_safe(value)
    assert {reader(f"NAME={value}") for reader in readers} != {value}


@given(st.text(alphabet=string.ascii_letters + "$#'\" {}\\=é", max_size=12))
def test_as_the_file_says_any_password_can_stand_in_a_connection(password):
    text = json.dumps({"conn_type": "kafka", "password": password})
    line = "AIRFLOW_CONN_X=" + text.replace("$", "\\u0024").replace("#", "\\u0023")
    for reader in READERS:
        assert json.loads(reader(line) or "")["password"] == password, reader.__name__


def test_the_head_of_the_file_says_so():
    head = (PROJECT / ".env.example").read_text().partition("# ----")[0]
    for said in ("without quotes", "without $", "without # after a space", "\\u0024", "\\u0023"):
        assert said in head
