"""docs/security.md says how much was tried: as much as the tests try."""

from __future__ import annotations

import re

import pytest

from tests import (
    test_hostile_clocks,
    test_hostile_inputs,
    test_hostile_neighbours,
    test_hostile_prompts,
    test_hostile_stack,
    test_logs_and_secrets,
    test_storage,
)
from tests.conftest import PROJECT
from tests.hostile_messages import HOSTILE
from tests.hostile_world import ATTACKS
from tests.injections import INJECTIONS

pytestmark = pytest.mark.one_stack


def test_the_doc_says_as_many_as_were_tried():
    text = (PROJECT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| (.+?) \| ([\d,]+) \| .+ \| (.+) \|$", text, re.MULTILINE)
    said = {kind: int(number.replace(",", "")) for kind, number, _ in rows}
    tried = {
        "texts that take long, each in every function for texts": len(test_hostile_inputs.TEXT_UNITS)
        * len(test_hostile_inputs.TEXT_FUNCTIONS),
        "parts of documents, repeated and mixed at random": sum(map(len, test_hostile_inputs.UNITS.values())),
        "servers that drip, for each kind of call": 2 * len(test_hostile_inputs.CALLS),
        "errors, redirects and URLs with secrets": len(test_logs_and_secrets.FAULTS),
        "folders of odd names": len(test_storage.ODD_FOLDERS),
        "messages on Kafka and SQS": len(HOSTILE),
        "DAGs attacked with templates in every text": len(ATTACKS),
        "instructions in texts, for each pattern": len(INJECTIONS) * len(test_hostile_prompts.REACH),
        "runs of one batch at once": test_hostile_neighbours.RUNS,
        "wrong clocks, headers and counts": len(test_hostile_clocks.AHEAD_S)
        + len(test_hostile_clocks.DATES)
        + 2 * len(test_hostile_clocks.JUMPS_S),
        "requests of web pages to the local stack": len(test_hostile_stack.REFUSED),
    }
    assert said == tried
    for _, _, files in rows:
        for name in re.findall(r"`(test_\w+\.py)`", files):
            assert (PROJECT / "tests" / name).exists()
