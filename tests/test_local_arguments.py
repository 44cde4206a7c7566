"""A number or day on a command line that makes no sense is an error that names it, and nothing is done."""

from __future__ import annotations

import argparse
import importlib
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.arguments import day, number, whole_number

pytestmark = pytest.mark.one_stack

NONSENSE = ["", "x", "-1", "nan", "inf", "-inf", "1e400", "9" * 5000, "1e9", "1,5", "\x00", "٣x"]
COMMANDS = [
    ("local.forget", "--days", "DAYS"),
    ("local.send", "--number", "N"),
    ("local.send", "--timeout", "TIMEOUT"),
    ("local.price", "--first", "FROM"),
    ("local.price", "--last", "TO"),
    ("local.evaluate", "--limit", "LIMIT"),
    ("local.evaluate", "--trials", "TRIALS"),
    ("local.evaluate", "--budget", "BUDGET"),
    ("local.evaluate", "--alarms", "ALARMS"),
    ("local.demo", "--port", "PORT"),
]


@pytest.mark.parametrize("text", NONSENSE)
@pytest.mark.parametrize(("module", "option", "name"), COMMANDS, ids=lambda each: each)
def test_nonsense_on_a_command_line_is_an_error_that_names_it(module, option, name, text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, f"{option}={text}"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: {name}=" in error
    assert "it must be a" in error
    assert len(error) < 300


@given(st.one_of(st.text(), st.floats().map(str), st.integers().map(str)))
def test_what_is_read_is_within_its_limits_or_refused(text):
    for read in (number("X", 0, 36_500), whole_number("X", 1, 100)):
        with suppress(argparse.ArgumentTypeError):
            found = read(text)
            assert 0 <= found <= 36_500
            assert found == float(text)


def test_a_day_is_read():
    assert day("FROM")("2026-11-30").isoformat() == "2026-11-30"
