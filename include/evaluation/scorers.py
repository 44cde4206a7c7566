"""How good an answer is. A scorer returns metrics from 0 to 1; a case is passed if all of them are 1."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Metrics = dict[str, float]


class Asked(NamedTuple):
    """What a task of a DAG is given: the params of its run, and its function's arguments."""

    params: Mapping[str, Any] = {}
    arguments: Mapping[str, Any] = {}


class Given(NamedTuple):
    """What a task answered, as XCom has it, and its calls of tools: `tool`, and the arguments by name."""

    output: Any
    calls: Sequence[Mapping[str, Any]] = ()


class Scorer(Protocol):
    """Scores an answer. `fields` are those that `expected` of each case must have."""

    @property
    def fields(self) -> tuple[str, ...]: ...

    def __call__(self, expected: Mapping[str, Any], given: Given, asked: Asked) -> Metrics: ...


class SameFields:
    """Each of these fields of the answer is the expected one: a metric per field."""

    def __init__(self, *fields: str) -> None:
        self.fields = fields

    def __call__(self, expected: Mapping[str, Any], given: Given, asked: Asked) -> Metrics:
        return {field: float(given.output[field] == expected[field]) for field in self.fields}


class SameOutput:
    """The answer as a whole is the expected value, after a prefix."""

    def __init__(self, field: str, prefix: str = "") -> None:
        self.fields = (field,)
        self._prefix = prefix

    def __call__(self, expected: Mapping[str, Any], given: Given, asked: Asked) -> Metrics:
        (field,) = self.fields
        return {field: float(given.output == f"{self._prefix}{expected[field]}")}


class SameSet:
    """The answer, a list, has the expected items: `precision` and `recall`."""

    def __init__(self, field: str) -> None:
        self.fields = (field,)

    def __call__(self, expected: Mapping[str, Any], given: Given, asked: Asked) -> Metrics:
        return precision_and_recall(given.output, expected[self.fields[0]])


class Scored:
    """There is an answer; a judge decides how good it is."""

    fields: tuple[str, ...] = ()

    def __call__(self, expected: Mapping[str, Any], given: Given, asked: Asked) -> Metrics:
        return {"answered": 1.0}


class ToolCalls:
    """The agent made the expected calls of tools (`calls`), no others, and its answer holds the `facts`."""

    fields = ("calls", "facts")

    def __call__(self, expected: Mapping[str, Any], given: Given, asked: Asked) -> Metrics:
        wanted, made = ([_frozen(call) for call in calls] for calls in (expected["calls"], given.calls))
        found = precision_and_recall(made, wanted)
        return {f"calls, {name}": value for name, value in found.items()} | {
            "facts": facts_in(str(given.output), expected["facts"])
        }


def precision_and_recall(found: Collection[Any], wanted: Collection[Any]) -> Metrics:
    """Return which share of what was found is wanted, and which share of what is wanted was found."""
    both = len(set(found) & set(wanted))
    return {
        "precision": both / len(set(found)) if found else float(not wanted),
        "recall": both / len(set(wanted)) if wanted else 1.0,
    }


def facts_in(text: str, facts: Sequence[Sequence[str]]) -> float:
    """Return the share of the facts that are in the text.

    A fact is in it if one of its wordings is, as whole words. Case does not matter. A number is not part of another
    one: "5" is not in "15" or "5.1".
    """
    if not facts:
        return 1.0
    return sum(any(_is_in(wording, text) for wording in wordings) for wordings in facts) / len(facts)


def _is_in(wording: str, text: str) -> bool:
    words = r"\s+".join(map(re.escape, wording.casefold().split()))
    return re.search(rf"(?<!\w)(?<!\d[.,]){words}(?!\w)(?![.,]\d)", text.casefold()) is not None


def _frozen(call: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in call.items()))
