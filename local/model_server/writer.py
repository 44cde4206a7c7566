"""Writes a JSON value that follows a schema, one field after the other.

The writer puts braces, names and commas itself. The model chooses among fixed options (see ``choice``), and
writes strings and numbers as continuations of the JSON text so far, so each value sees those before it.
Each choice is asked on its own: its cue is the path of names that leads to the field, without the values of other
fields; inside a list, the cue is the text so far, as items differ only by it.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import scalars
from .choice import Chooser, common_start
from .conversation import Conversation
from .engine import Engine
from .schema import Node, Schema

STRING_TOKENS = 40
LIST_ITEMS = 3


@dataclass(frozen=True)
class Place:
    """Where a value goes.

    ``before`` is the answer's text so far, ``cue`` the text after which a choice is asked. The two are the same
    inside a list.
    """

    before: str = ""
    cue: str = ""
    listed: bool = False

    def plus(self, text: str, cue: str | None = None) -> "Place":
        """Return the place after ``text``, which is also appended to the cue unless ``cue`` is given."""
        cue = text if cue is None or self.listed else cue
        return replace(self, before=self.before + text, cue=self.cue + cue)


class Writer:
    """Writes one answer.

    :param spoken: whether the answer's only free string is written as plain chat.
    :param limit: most tokens per string, None for the default.
    :param sampling: settings for strings, on top of the engine's own.
    """

    def __init__(
        self,
        engine: Engine,
        conversation: Conversation,
        schema: Schema,
        spoken: bool,
        limit: int | None,
        sampling: dict[str, Any],
    ) -> None:
        self._engine = engine
        self._chooser = Chooser(engine, conversation)
        self._conversation = conversation
        self._schema = schema
        self._limit = min(limit or STRING_TOKENS, STRING_TOKENS)
        self._sampling = sampling
        fields = schema.node.get("properties", {}).values()
        strings = [node for node in fields if node.get("type") == "string" and "format" not in node]
        self._spoken = strings[0] if spoken and len(strings) == 1 else None

    def write(self) -> Any:
        """Return the value, valid against the schema.

        :raises ApiError: status 400 if the schema can't be fulfilled or the text outgrows the context.
        """
        value = self._value(self._schema.node, Place())
        if not self._schema.is_valid(value):
            raise self._schema.error("No answer that fulfils this schema was found; make it simpler.")
        return value

    def _value(self, node: Node, place: Place) -> Any:
        if "enum" in node:
            return self._choose(node["enum"], place)
        if "anyOf" in node:
            return self._value(self._branch(node["anyOf"], place), place)
        match node["type"]:
            case "object":
                return self._object(node, place)
            case "array":
                return self._array(node, place)
            case "boolean":
                return self._choose([True, False], place)
            case "null":
                return None
            case "string":
                return self._string(node, place)
            case _:
                return self._number(node, place)

    def _choose(self, values: Sequence[Any], place: Place) -> Any:
        if not all(isinstance(value, str) for value in values):
            return values[self._chooser.likeliest(place.cue, [*map(_json, values)], plain=place.listed)]
        if place.listed:
            return values[self._chooser.likeliest(place.cue + '"', [_json(v)[1:-1] for v in values], plain=True)]
        return self._ranked(values, place.cue)[0]

    def _ranked(self, words: Sequence[str], cue: str) -> list[str]:
        """Return the words, best first. A common prefix, as in handle_low and handle_high, goes to the cue."""
        start = re.sub(r"[A-Za-z0-9]*\Z", "", common_start(words))
        order = self._chooser.closest(f'{cue}"{start}', [word[len(start) :] for word in words])
        return [words[i] for i in order]

    def _branch(self, branches: Sequence[Node], place: Place) -> Node:
        openings: dict[str, Node] = {}
        for branch in branches:
            openings.setdefault(_opening(branch), branch)
        options = list(openings)
        return openings[options[self._chooser.likeliest(place.cue, options, plain=place.listed)]]

    def _object(self, node: Node, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        place = place.plus("{")
        for name, child in node["properties"].items():
            start = f"{', ' if result else ''}{_json(name)}: "
            result[name] = self._value(child, place.plus(start, f"{_json(name)}: "))
            place = place.plus(start + _json(result[name]), "")
        return result

    def _array(self, node: Node, place: Place) -> list[Any]:
        least = node.get("minItems", 0)
        most = min(node.get("maxItems", math.inf), max(LIST_ITEMS, least))
        words = node["items"].get("enum", [])
        words = self._ranked(words, place.cue + "[") if words and all(isinstance(word, str) for word in words) else []
        items: list[Any] = []
        place = place.plus("[")
        place = replace(place, cue=place.before, listed=True)
        while len(items) < most:
            if len(items) >= max(least, 1) and self._chooser.likeliest(place.before, [",", "]"], plain=True):
                break
            here = place.plus(", " if items else "")
            item = words[len(items)] if len(items) < len(words) else self._value(node["items"], here)
            if item in items and len(items) >= least:
                break
            items.append(item)
            place = here.plus(_json(item))
        return items

    def _string(self, node: Node, place: Place) -> str:
        limit = max(self._limit, node.get("minLength", 0) // 2)
        limit = min(limit, node.get("maxLength", limit) or 1)
        if node is self._spoken:
            said = self._engine.complete(self._conversation.prompt(), limit, **self._sampling)
            return scalars.string_value(" ".join(said.text.split()), said.cut, node)
        prompt = self._conversation.prompt(place.before + '"')
        found = self._engine.complete(prompt, limit, grammar=scalars.string_grammar(node), **self._sampling)
        text, closed, _ = found.text.partition('"')
        return scalars.string_value(text, not closed, node)

    def _number(self, node: Node, place: Place) -> int | float:
        if few := scalars.digits(node):
            return int(self._choose(few, place))
        prompt = self._conversation.prompt(place.before.rstrip())
        found = self._engine.complete(prompt, 16, grammar=scalars.number_grammar(node), temperature=0)
        return scalars.number_value(found.text, node)


def _opening(node: Node) -> str:
    """Return how a value of this schema starts, as far as the schema determines it."""
    if "enum" in node:
        return _json(node["enum"][0])
    if "anyOf" in node:
        return _opening(node["anyOf"][0])
    for name, child in node.get("properties", {}).items():
        return f'{{"{name}": {_opening(child)}'
    starts = {"object": "{", "array": "[", "null": "null", "boolean": "true", "string": '"'}
    return starts.get(node["type"], "1")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
