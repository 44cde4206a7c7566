"""Training files: the emulator's own checks, and the examples that a tuned model is shown."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

LEAST_EXAMPLES = 10
# More examples, or whole questions, cost seconds per answer on a small model and gain little.
SHOWN = 4
SHOWN_CHARACTERS = 100
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def problems(path: Path, least: int) -> list[str]:
    """Return what is wrong with a file of chat examples, which must have at least so many."""
    found, number = [], 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                _messages(json.loads(line))
            except (ValueError, RecursionError) as error:
                found.append(f"line {number}: {error}")
    if number < least:
        found.append(f"the file has {number} examples; at least {least} are needed")
    return found


def count_tokens(path: Path) -> int:
    """Estimate the tokens of the examples: pieces of words, punctuation, and 3 more per message."""
    texts = [message["content"] for messages in _examples(path) for message in messages]
    return sum(len(re.findall(r"\w{1,5}|[^\w\s]", text)) + 3 for text in texts)


def with_examples(path: Path, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Insert the nearest examples as turns after a conversation's system messages, the nearest one last.

    The nearest are those that have most words in common with the last message.
    """
    words = _words(messages[-1].get("content"))
    pairs = [
        (asked["content"], answered["content"])
        for example in _examples(path)
        for asked, answered in pairwise(example)
        if (asked["role"], answered["role"]) == ("user", "assistant") and answered.get("weight") != 0
    ]
    nearest = sorted(pairs, key=lambda pair: len(words & _words(pair[0])) / (1 + len(_words(pair[0]))))[-SHOWN:]
    turns = [
        {"role": role, "content": text}
        for asked, answered in nearest
        for role, text in (("user", asked[:SHOWN_CHARACTERS]), ("assistant", answered))
    ]
    start = next((i for i, each in enumerate(messages) if each.get("role") not in ("system", "developer")), 0)
    return [*messages[:start], *turns, *messages[start:]]


def _messages(example: Any) -> list[dict[str, Any]]:
    messages = example.get("messages") if isinstance(example, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError('it is not {"messages": [{"role": ..., "content": ...}, ...]}')
    for message in messages:
        if message.get("role") not in _ROLES:
            raise ValueError(f"{message.get('role')!r} is not a role")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"the content of the {message['role']} message is not text")
    if "assistant" not in [message["role"] for message in messages]:
        raise ValueError("there is no assistant message to learn from")
    return messages


def _examples(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open("rb") as lines:
        for line in lines:
            yield _messages(json.loads(line))


def _words(text: Any) -> set[str]:
    return set(re.findall(r"\w+", str(text).casefold()))
