"""No test gives its clock to the whole process: servers for tests, such as the scripted model, run in its threads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import PROJECT

pytestmark = pytest.mark.one_stack

CLOCKS = re.compile(r"""setattr\(\s*(["']([\w.]+\.)?(asyncio|time)\.\w+["']|([\w.]+\.)?(asyncio|time)\s*,)""")


def clocks_of_all(text: str) -> list[str]:
    """Where a test changes the clock or the event loop of the whole process, with the servers in its threads.

    It is to give its own to one module: `setattr(module, "time", SimpleNamespace(sleep=...))`.
    """
    return [match[0] for match in CLOCKS.finditer(text)]


def test_no_test_changes_the_clock_of_the_servers_that_run_beside_it():
    tests = set((PROJECT / "tests").rglob("*.py")) - {Path(__file__)}
    found = {path: clocks_of_all(path.read_text(encoding="utf-8")) for path in tests}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "call",
    [
        'setattr(doorbell.asyncio, "sleep", sleep)',
        'setattr(\n    time, "sleep", sleep)',
        'setattr("include.ai.layers.asyncio.sleep", sleep)',
        'setattr("time.sleep", sleep)',
    ],
)
def test_the_rule_finds_a_changed_clock(call):
    assert clocks_of_all(call)


@pytest.mark.parametrize("call", ['setattr(doorbell, "time", clock)', 'setattr("include.ai.layers.asyncio", loop)'])
def test_the_rule_lets_a_module_have_its_own_clock(call):
    assert not clocks_of_all(call)
