"""Short lines for the system message: what the fields mean, what the tools do. And a schema found in one."""

import json
from collections.abc import Sequence
from typing import Any

from .schema import Node, Schema
from .wire import Tool

MOST_FIELDS = 12
LONGEST = 160


def describe_fields(schema: Schema) -> str:
    """One line that lists the described fields at the top of an object schema, empty if none is described."""
    node = schema.resolve(schema.root)
    fields = []
    for name, child in list(node.get("properties", {}).items())[:MOST_FIELDS]:
        description = child.get("description") if isinstance(child, dict) else None
        if description:
            fields.append(f"{name}: {_short(description)}")
    return "Fields of the answer:\n" + "\n".join(fields) if fields else ""


def describe_tools(tools: Sequence[Tool]) -> str:
    """A line per tool with its name and what it does."""
    return "Tools:\n" + "\n".join(f"{t.function.name}: {_short(t.function.description or '')}" for t in tools)


def schema_in_text(text: str) -> Node | None:
    """The first JSON schema of an object that stands in ``text``, as pydantic-ai's prompted output puts it there."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found: Any = decoder.raw_decode(text, start)[0]
        except ValueError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("properties"), dict):
            return found
        start = text.find("{", start + 1)
    return None


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST else flat[: flat.rfind(" ", 0, LONGEST)] + "..."
