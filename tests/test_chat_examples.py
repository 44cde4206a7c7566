"""Every rule for fine-tuning examples, each by a file that breaks it."""

from __future__ import annotations

import io
import json
import tracemalloc
from functools import partial
from typing import Any

import pytest

from include.fine_tuning.checks import TRAINING, VALIDATION
from include.fine_tuning.examples import LONGEST_LINE, MOST_PROBLEMS, check_file, check_files, estimate_tokens, examples

pytestmark = pytest.mark.one_stack

MOST = 16_385
check = partial(check_file, most_tokens=MOST)


def conversation(n: int, **changes: Any) -> dict[str, Any]:
    roles = {"system": "Triage.", "user": f"Question {n}?", "assistant": f"Answer {n}"} | changes
    return {"messages": [{"role": role, "content": content} for role, content in roles.items() if content is not None]}


def lines(count: int = 12) -> list[bytes]:
    return [json.dumps(conversation(n)).encode() for n in range(count)]


def file_of(parts: list[bytes]) -> io.BytesIO:
    return io.BytesIO(b"\n".join(parts) + b"\n")


def message(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", **fields}]}).encode()


BAD_LINES = {
    "not JSON": (b'{"messages": [', "", "Invalid JSON"),
    "no object": (b"[]", "", "object"),
    "no messages": (b"{}", "messages", "required"),
    "messages are no list": (b'{"messages": "hello"}', "messages", "array"),
    "no message": (b'{"messages": []}', "messages", "at least 1"),
    "an unknown key": (json.dumps(conversation(1) | {"note": 1}).encode(), "note", "not permitted"),
    "a wrong role": (json.dumps(conversation(1, robot="x")).encode(), "messages.3.role", "'assistant'"),
    "empty content": (message(content=""), "messages.1.content", "at least 1 character"),
    "blank content": (message(content=" \n "), "messages.1.content", "at least 1 character"),
    "content null": (message(content=None), "messages.1.content", "string"),
    "a picture": (message(content=[{"type": "image_url"}]), "messages.1.content", "string"),
    "an unknown field": (message(content="a", mood="good"), "messages.1.mood", "not permitted"),
    "a wrong weight": (message(content="a", weight=2), "messages.1.weight", "less than or equal to 1"),
    "a weight that is no number": (message(content="a", weight=True), "messages.1.weight", "valid integer"),
    "a name twice": (lines()[3].replace(b'"role": "user"', b'"role": "user", "role": "user"'), "", "has 'role' twice"),
    "nothing to learn": (message(content="a", weight=0), "", "nothing to learn from"),
    "no assistant": (json.dumps(conversation(1, assistant=None)).encode(), "", "no assistant message"),
    "no user": (json.dumps(conversation(1, user=None)).encode(), "", "no user message"),
    "the user speaks last": (
        b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
        "",
        "the last message is the user's",
    ),
    "a late system message": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"},'
        b' {"role": "assistant", "content": "c"}]}',
        "",
        "a system message comes after",
    ),
    "a duplicate": (lines()[3].replace(b"Question", b"QUESTION "), "messages", "the same conversation is in line 4"),
    "too many tokens": (message(content="word " * 20_000), "messages", "tokens are too many"),
    "too long a line": (b'{"x": "' + b"a" * LONGEST_LINE + b'"}', "", "longer than"),
    "not UTF-8": ("Müller".encode("latin-1"), "", "not UTF-8"),
    "UTF-16": (lines()[0].decode().encode("utf-16"), "", "not UTF-8"),
    "an empty line": (b"", "", "the line is empty"),
    "half a surrogate": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "", "Invalid JSON"),
    "too deep": (b"[" * 50_000, "", "Invalid JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_reported_with_its_number_field_and_reason(name):
    bad, field, reason = BAD_LINES[name]
    checked = check("train.jsonl", file_of([*lines(), bad, *lines(15)[13:]]))
    assert checked.problems, "nothing was reported"
    (problem,) = checked.problems
    assert (problem.file, problem.line, problem.field) == ("train.jsonl", 13, field)
    assert reason in problem.reason
    assert str(problem).startswith("train.jsonl, line 13: ")


def test_all_bad_lines_are_reported_at_once_and_the_good_ones_counted():
    bad = [line for name, (line, _, _) in BAD_LINES.items() if name != "a duplicate"]
    checked = check("train.jsonl", file_of([*lines(), *bad]))
    assert {problem.line for problem in checked.problems} == set(range(13, 13 + len(bad)))
    assert checked.examples >= 12


def test_a_byte_order_mark_is_named():
    (problem,) = check("train.jsonl", file_of([b"\xef\xbb\xbf" + lines()[0], *lines()[1:]])).problems
    assert (problem.line, "byte order mark" in problem.reason) == (1, True)


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_an_empty_file_is_refused(content):
    assert check("train.jsonl", io.BytesIO(content)).problems


def test_fewer_than_ten_examples_are_too_few_to_train_on_but_not_to_validate_with():
    checked, validation = check_files(
        ("train.jsonl", file_of(lines(9))), ("valid.jsonl", file_of(lines(12)[10:])), MOST
    )
    (problem,) = checked.problems
    assert str(problem) == "train.jsonl: 9 examples are too few: at least 10 are needed"
    assert validation.problems == []


def test_a_question_of_the_training_file_in_the_validation_file_is_a_leak_whatever_its_answer():
    leaked = json.dumps(conversation(3, system="Other words.", user="question  3?", assistant="Else")).encode()
    _, validation = check_files(
        ("train.jsonl", file_of(lines())), ("valid.jsonl", file_of([*lines(14)[12:], leaked])), MOST
    )
    (problem,) = validation.problems
    assert str(problem) == "valid.jsonl, line 3: messages: the same question is in train.jsonl, line 4"


def test_a_huge_file_is_read_in_little_memory_and_a_hostile_one_does_not_fill_the_log():
    class Endless(io.RawIOBase):
        sent = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if self.sent > 50_000_000:
                return 0
            buffer[:] = (b"a" * 9_999 + b"\n") * (len(buffer) // 10_000)
            self.sent += len(buffer)
            return len(buffer)

    tracemalloc.start()
    checked = check("train.jsonl", io.BufferedReader(Endless(), 100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert checked.problem_count > 4_000
    assert len(checked.problems) == MOST_PROBLEMS
    assert peak < 5_000_000


def test_the_bundled_examples_are_valid_and_as_many_as_promised():
    with TRAINING.open("rb") as one, VALIDATION.open("rb") as two:
        training, validation = check_files((TRAINING.name, one), (VALIDATION.name, two), MOST)
    assert training.problems + validation.problems == []
    assert training.examples >= 200
    assert validation.examples >= 50
    assert 10_000 < training.tokens < 50_000


def test_the_estimate_counts_a_quarter_of_the_bytes_and_four_per_message():
    (example,) = examples(file_of([message(content="twelve bytes")]))
    assert estimate_tokens(example.messages) == (1 + 4) + (3 + 4)
