"""Chat examples for fine-tuning: one JSON object per line, checked before anything is uploaded.

A line is `{"messages": [{"role": "system" | "user" | "assistant", "content": "..."}, ...]}`; the last message is the
assistant's. An assistant message may have a `weight` of 0 (not to learn from) or 1. Files are read line by line, so
they may be of any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, BinaryIO, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from include.common.json_lines import DuplicateName, read_json, read_lines

LEAST_EXAMPLES = 10
LONGEST_LINE = 1_000_000
# A file in which every line is bad must not fill the memory or the log.
MOST_PROBLEMS = 1_000

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Message(BaseModel):
    """One turn. Other parts of the providers' formats (tools, pictures) are refused, as these DAGs do not use them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: _Text
    weight: Annotated[int, Field(ge=0, le=1)] | None = None


class Example(BaseModel):
    """One conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: list[Message] = Field(min_length=1)

    @model_validator(mode="after")
    def _turns(self) -> Example:
        roles = [message.role for message in self.messages]
        if "assistant" not in roles:
            raise ValueError("there is no assistant message to learn from")
        if "user" not in roles:
            raise ValueError("there is no user message to answer")
        if roles[-1] != "assistant":
            raise ValueError(f"the last message is the {roles[-1]}'s, not the assistant's")
        if "system" in roles[1:]:
            raise ValueError("a system message comes after another message")
        if any(message.weight is not None for message in self.messages if message.role != "assistant"):
            raise ValueError("only an assistant message has a weight")
        if all(message.weight == 0 for message in self.messages if message.role == "assistant"):
            raise ValueError("every assistant message has the weight 0: there is nothing to learn from")
        return self

    @property
    def question(self) -> list[dict[str, str]]:
        """Return the messages before the last answer, in the form that a model takes."""
        return [{"role": message.role, "content": message.content} for message in self.messages[:-1]]

    @property
    def answer(self) -> str:
        """Return the last answer."""
        return self.messages[-1].content


class Problem(NamedTuple):
    """What is wrong with a line; line 0 stands for the whole file."""

    file: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        where = self.file if not self.line else f"{self.file}, line {self.line}"
        return f"{where}: {self.field}: {self.reason}" if self.field else f"{where}: {self.reason}"


@dataclass
class CheckedFile:
    """The contents of a file of examples.

    `tokens` is an estimate (see `estimate_tokens`); `problems` are the first of `problem_count`; `questions` maps a
    digest of each question to its line.
    """

    name: str
    examples: int = 0
    tokens: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    questions: dict[bytes, int] = field(default_factory=dict)

    def report(self, line: int, field: str, reason: str) -> None:
        """Record a problem."""
        self.problem_count += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(self.name, line, field, reason))


def check_files(
    training: tuple[str, BinaryIO], validation: tuple[str, BinaryIO], most_tokens: int
) -> tuple[CheckedFile, CheckedFile]:
    """Check a training file and its validation file, each as (name, bytes); find every bad line.

    Problems of more than one line are a conversation that is twice in a file, a question of the training file that is
    also in the validation file (its score would be worth nothing), and too few examples.
    """
    trained = check_file(*training, most_tokens)
    validated = check_file(*validation, most_tokens, least=1)
    for question, line in validated.questions.items():
        if question in trained.questions:
            reason = f"the same question is in {trained.name}, line {trained.questions[question]}"
            validated.report(line, "messages", reason)
    return trained, validated


def check_file(name: str, file: BinaryIO, most_tokens: int, least: int = LEAST_EXAMPLES) -> CheckedFile:
    """Check one file, which must hold at least `least` examples of at most `most_tokens` tokens each."""
    checked = CheckedFile(name)
    seen: dict[bytes, int] = {}
    lines = 0
    for line, raw in read_lines(file, LONGEST_LINE):
        lines = line
        example = _example(checked, line, raw)
        if example is None:
            continue
        checked.examples += 1
        tokens = estimate_tokens(example.messages)
        checked.tokens += tokens
        if tokens > most_tokens:
            reason = f"about {tokens} tokens are too many: the model learns from at most {most_tokens}"
            checked.report(line, "messages", reason)
        whole = _digest(message.role + message.content for message in example.messages)
        if whole in seen:
            checked.report(line, "messages", f"the same conversation is in line {seen[whole]}")
        seen.setdefault(whole, line)
        question = [message.content for message in example.messages[:-1] if message.role != "system"]
        checked.questions.setdefault(_digest(question), line)
    if not lines:
        checked.report(0, "", "the file is empty")
    elif lines < least:
        checked.report(0, "", f"{lines} examples are too few: at least {least} are needed")
    return checked


def examples(file: BinaryIO) -> Iterator[Example]:
    """Read the examples of a checked file."""
    return (Example.model_validate_json(line or b"") for _, line in read_lines(file, LONGEST_LINE))


def estimate_tokens(messages: Sequence[Message]) -> int:
    """Estimate how many tokens a model reads in these messages: a quarter of their UTF-8 bytes, and 4 per message.

    No tokenizer is used, as each model has its own, to be downloaded. Compared with OpenAI's o200k, the estimate is 4 %
    too high for the bundled English examples, so that a budget is kept rather than exceeded.
    """
    return sum(-(-len(message.content.encode()) // 4) + 4 for message in messages)


def _example(checked: CheckedFile, line: int, raw: bytes | None) -> Example | None:
    if raw is None:
        checked.report(line, "", f"the line is longer than {LONGEST_LINE} bytes")
        return None
    if raw.startswith(b"\xef\xbb\xbf"):
        checked.report(line, "", "the file starts with a byte order mark: save it as UTF-8 without one")
        return None
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        checked.report(line, "", f"byte {error.start + 1} is not UTF-8: save the file as UTF-8")
        return None
    if not raw.strip():
        checked.report(line, "", "the line is empty")
        return None
    try:
        example = Example.model_validate_json(raw)
        read_json(raw)
        return example
    except DuplicateName as error:
        checked.report(line, "", str(error))
        return None
    except ValidationError as error:
        for each in error.errors(include_url=False, include_context=False, include_input=False):
            path = ".".join(str(step) for step in each["loc"])
            checked.report(line, path, each["msg"].removeprefix("Value error, "))
        return None


def _digest(texts: Iterable[str]) -> bytes:
    """Return a digest that ignores case and white space."""
    normal = "\0".join(" ".join(text.casefold().split()) for text in texts)
    return hashlib.blake2b(normal.encode(), digest_size=16).digest()
