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
from dataclasses import dataclass, field, replace
from typing import Any

from . import scalars
from .choice import Chooser
from .conversation import Conversation
from .engine import SAMPLING, Engine
from .schema import DEEPEST, SHALLOW, Node, Schema

STRING_TOKENS = 60
LIST_ITEMS = 4
MAP_ENTRIES = 3
ANYTHING: Node = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]}


@dataclass(frozen=True)
class Place:
    """Where a value goes.

    ``before`` is the answer's text so far, ``cue`` the text after which a choice is asked. The two are the same
    inside a list.
    """

    before: str
    cue: str
    depth: int = 0
    listed: bool = False

    def plus(self, text: str, cue: str | None = None, deeper: int = 0) -> "Place":
        """The place after ``text``; ``cue`` is appended to the cue, ``text`` if it is None."""
        cue = text if cue is None or self.listed else cue
        return replace(self, before=self.before + text, cue=self.cue + cue, depth=self.depth + deeper)

    def in_list(self) -> "Place":
        """The same place, with choices that see all of the text so far."""
        return replace(self, cue=self.before, listed=True)


@dataclass
class Writer:
    """Writes one answer.

    :param spoken: whether the answer's only free string is written as plain chat.
    :param limit: most tokens per string, None for the default.
    :param seed: changes what is drawn; equal requests with equal seeds get equal answers.
    """

    engine: Engine
    chooser: Chooser
    conversation: Conversation
    schema: Schema
    spoken: bool
    limit: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)

    def write(self) -> Any:
        """The value, valid against the schema.

        :raises ApiError: status 400 if the schema can't be fulfilled or the text outgrows the context.
        """
        value = self._value(self.schema.root, Place("", ""))
        if not self.schema.is_valid(value):
            raise self.schema.error("No answer that fulfils this schema was found; make it simpler.")
        return value

    def _value(self, raw: Node | bool, place: Place) -> Any:
        if place.depth > DEEPEST:
            raise self.schema.error("The schema demands values nested without end.")
        node = self.schema.resolve(raw)
        kind = self.schema.kind(node)
        if kind == "enum":
            return self._choose(node["enum"], place)
        if kind == "anyOf":
            return self._value(self._branch(node, place), place)
        if kind == "any":
            return self._value(ANYTHING, place)
        if kind == "object":
            return self._object(node, place)
        if kind == "array":
            return self._array(node, place)
        if kind == "boolean":
            return self._choose([True, False], place)
        if kind == "null":
            return None
        return self._string(node, place) if kind == "string" else self._number(node, place, kind == "integer")

    def _choose(self, values: Sequence[Any], place: Place) -> Any:
        texts = [json.dumps(value, ensure_ascii=False) for value in values]
        if not all(isinstance(value, str) for value in values):
            return values[self._likeliest(place, "", texts)]
        if place.listed:
            return values[self._likeliest(place, '"', [text[1:-1] for text in texts])]
        return self._ranked(values, place.cue)[0]

    def _likeliest(self, place: Place, quote: str, options: Sequence[str]) -> int:
        return self.chooser.likeliest(self.conversation, place.cue + quote, options, plain=place.listed)

    def _ranked(self, words: Sequence[str], cue: str) -> list[str]:
        """The words, best first. What they share in front, as in handle_low and handle_high, goes to the cue."""
        first, last = min(words), max(words)
        same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
        shared = re.match(r".*[^A-Za-z0-9]|", first[:same], re.DOTALL)
        start = shared.group() if shared else ""
        order = self.chooser.closest(self.conversation, f'{cue}"{start}', [word[len(start) :] for word in words])
        return [words[i] for i in order]

    def _branch(self, node: Node, place: Place) -> Node:
        shared = {key: value for key, value in node.items() if key not in ("anyOf", "oneOf", "type", "default")}
        branches = [self.schema.resolve({**shared, **self.schema.resolve(part)}) for part in node["anyOf"]]
        if place.depth >= SHALLOW:
            branches = sorted(branches, key=lambda branch: self.schema.kind(branch) in ("object", "array", "anyOf"))
            return branches[0]
        openings: dict[str, Node] = {}
        for branch in branches:
            openings.setdefault(self._opening(branch), branch)
        options = list(openings)
        return openings[options[self._likeliest(place, "", options)]]

    def _opening(self, node: Node) -> str:
        """How a value of this schema starts, as far as the schema alone says it."""
        kind = self.schema.kind(node)
        if kind == "enum":
            return json.dumps(node["enum"][0])
        if kind == "object":
            for name, child in node.get("properties", {}).items():
                resolved = self.schema.resolve(child)
                tag = json.dumps(resolved["enum"][0]) if len(resolved.get("enum", [])) == 1 else ""
                return f'{{"{name}": {tag}'
            return "{"
        if kind == "anyOf":
            return self._opening(self.schema.resolve(node["anyOf"][0]))
        starts = {"array": "[", "null": "null", "boolean": "true", "integer": "1", "number": "1"}
        return starts.get(kind, '"')

    def _object(self, node: Node, place: Place) -> dict[str, Any]:
        properties = dict(node.get("properties", {}))
        required = node.get("required", [])
        more = node.get("additionalProperties", not properties)
        properties.update({name: more if isinstance(more, dict) else {} for name in required if name not in properties})
        result: dict[str, Any] = {}
        place = place.plus("{", deeper=1)
        for name, child in properties.items():
            if name not in required and place.depth > SHALLOW:
                continue
            here = place.plus(f"{', ' if result else ''}{_json(name)}: ", f"{_json(name)}: ")
            result[name] = self._value(child, here)
            written = f"{', ' if len(result) > 1 else ''}{_json(name)}: {_json(result[name])}"
            place = place.plus(written, "")
        if more is not False and (not properties or len(result) < node.get("minProperties", 0)):
            self._entries(node, more, result, place)
        return result

    def _entries(self, node: Node, child: Node | bool, result: dict[str, Any], place: Place) -> None:
        """Fill the object's free entries, with keys that the model makes up."""
        wanted = max(node.get("minProperties", 1), 1)
        most = min(node.get("maxProperties", math.inf), max(MAP_ENTRIES, wanted))
        names = self.schema.resolve(node.get("propertyNames", {}))
        place = place.in_list()
        while len(result) < most:
            if len(result) >= wanted and not self._goes_on(place, "}"):
                return
            place = place.plus(", " if result else "")
            key = self._key(names, list(result), place)
            if key is None:
                return
            place = place.plus(f"{_json(key)}: ")
            result[key] = self._value(child, place)
            place = place.plus(_json(result[key]))

    def _key(self, names: Node, used: list[str], place: Place) -> str | None:
        if "enum" in names:
            left = [name for name in names["enum"] if name not in used]
            return str(self._choose(left, place)) if left else None
        for attempt in range(3):
            key = self._string(names, place, scalars.KEY_GRAMMAR if names.keys() <= {"type"} else None, attempt)
            if key not in used:
                return key
        return f"{key}_{len(used)}"

    def _array(self, node: Node, place: Place) -> list[Any]:
        first = node.get("prefixItems", [])
        rest = node.get("items", {})
        least = node.get("minItems", 0)
        most = min(node.get("maxItems", math.inf), max(LIST_ITEMS, least, len(first)))
        if rest is False:
            most = min(most, len(first))
        wanted = max(least, len(first), 0 if place.depth >= SHALLOW and not least else 1)
        if place.depth >= SHALLOW:
            most = min(most, wanted)
        items: list[Any] = []
        words = self._words(rest, place)
        if words and (node.get("uniqueItems") or least <= len(words)):
            most = min(most, len(words))
        place = place.plus("[", deeper=1).in_list()
        while len(items) < most:
            if len(items) >= wanted and not self._goes_on(place, "]"):
                break
            here = place.plus(", " if items else "")
            if words and len(items) < len(words) and not first:
                item = words[len(items)]
            else:
                item = self._value(first[len(items)] if len(items) < len(first) else rest, here)
            if item in items and (node.get("uniqueItems") or len(items) >= wanted):
                break
            items.append(item)
            place = here.plus(_json(item))
        return items

    def _words(self, raw: Node | bool, place: Place) -> list[str]:
        """All words that a list's items are chosen from, best first; empty if items are anything else."""
        node = self.schema.resolve(raw)
        words = node.get("enum", [])
        if not words or not all(isinstance(word, str) for word in words):
            return []
        return self._ranked(words, place.cue + "[")

    def _goes_on(self, place: Place, end: str) -> bool:
        scores = self.engine.option_scores(self.conversation.prompt(place.before), [",", end])
        return scores[","] > scores[end]

    def _string(self, node: Node, place: Place, grammar: str | None = None, attempt: int = 0) -> str:
        limit = min(self.limit or STRING_TOKENS, max(STRING_TOKENS, node.get("minLength", 0) // 2))
        if "maxLength" in node:
            limit = max(min(limit, node["maxLength"]), 1)
        settings = {**SAMPLING, **self.sampling}
        if self.spoken and place.depth == 1 and not place.listed and [node] == self._free_strings():
            said = self.engine.complete(self.conversation.prompt(), limit, **settings)
            return scalars.string_value(" ".join(said.text.split()), said.cut, node)
        prompt = self.conversation.prompt(place.before + '"')
        if attempt:
            settings |= {"seed": settings["seed"] + attempt, "temperature": 1.0}
        if "pattern" in node:
            return self._patterned(node, place, 2 * limit)
        found = self.engine.complete(prompt, limit, grammar=grammar or scalars.string_grammar(node), **settings)
        text, closed, _ = found.text.partition('"')
        return scalars.string_value(text, not closed, node)

    def _free_strings(self) -> list[Node]:
        """The answer's own properties (not those of nested values) that are strings of any form."""
        properties = [
            self.schema.resolve(child) for child in self.schema.resolve(self.schema.root).get("properties", {}).values()
        ]
        strings = [node for node in properties if self.schema.kind(node) == "string"]
        return [node for node in strings if not {"pattern", "format"} & node.keys()]

    def _patterned(self, node: Node, place: Place, limit: int) -> str:
        """A string for a regular expression, by llama.cpp's own translation, which knows only the simple ones."""
        schema = {key: node[key] for key in ("type", "pattern") if key in node}
        found = self.engine.complete(self.conversation.prompt(place.before), limit, json_schema=schema)
        try:
            return str(json.loads(found.text))
        except ValueError:
            raise self.schema.error(f"No text was found for the pattern {node['pattern']!r}.") from None

    def _number(self, node: Node, place: Place, integer: bool) -> int | float:
        few = scalars.few_integers(node) if integer else []
        if few:
            return int(self._choose(few, place))
        grammar = scalars.number_grammar(node, integer)
        prompt = self.conversation.prompt(place.before.rstrip())
        found = self.engine.complete(prompt, 16, grammar=f"{grammar}", temperature=0)
        return scalars.number_value(found.text, node, integer)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
