"""JSON schemas as the writer needs them: references are resolved, and what can't be written is refused."""

import json
import re
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]

from local.api_error import ApiError

Node = dict[str, Any]
WRITTEN = {
    *("$ref", "type", "enum", "const", "anyOf", "oneOf", "format", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("properties", "required", "additionalProperties", "items", "minItems", "maxItems", "uniqueItems"),
}
# Keywords that restrict a value in ways the writer does not know. All others only describe it.
REFUSED = sorted((Draft202012Validator.VALIDATORS.keys() | {"$dynamicRef", "then", "else"}) - WRITTEN)
FORMATS = ("date", "time", "date-time", "email", "uri")


class Schema:
    """A checked schema.

    :param root: JSON schema, draft 2020-12, of the shapes that pydantic gives to models of plain types, literals,
        enums, lists, unions and other models; references point into the schema itself.
    :param param: path of the schema in the request, for error messages.
    :raises ApiError: status 400 if the schema is malformed or uses a keyword that can't be written.
    """

    def __init__(self, root: Node, param: str) -> None:
        self._param = param
        try:
            Draft202012Validator.check_schema(root)
        except SchemaError as error:
            raise self.error(f"Not a valid JSON schema at {error.json_path}: {error.message[:200]}") from None
        self._root = root
        self._validator = Draft202012Validator(root)
        self.node = self._plain(root, "the top", ())

    def error(self, message: str) -> ApiError:
        """Return an error that names the schema's place in the request."""
        return ApiError(message, param=self._param, code="invalid_json_schema")

    def is_valid(self, value: Any) -> bool:
        """Return whether ``value`` conforms to the whole schema."""
        return bool(self._validator.is_valid(value))

    def _plain(self, raw: Any, path: str, inside: tuple[str, ...]) -> Node:
        """Return the schema without ``$ref``, ``const`` and ``oneOf``; each node has a type, an enum or an anyOf."""
        if not raw or raw is True:
            return {"type": "string"}
        node = dict(raw)
        while reference := node.pop("$ref", None):
            if reference in inside:
                raise self.error(f"The $ref {reference!r} at {path} leads to itself, which is not supported.")
            inside = (*inside, reference)
            node = {**self._target(reference), **node}
        for keyword in REFUSED:
            if keyword in node:
                raise self.error(f"The schema keyword {keyword!r} at {path} is not supported.")
        if "const" in node:
            node["enum"] = [node["const"]]
        if "enum" in node:
            return {"enum": node["enum"]}
        if branches := node.get("anyOf", node.get("oneOf")):
            return {"anyOf": [self._plain(part, f"{path}/{i}", inside) for i, part in enumerate(branches)]}
        kind = node.setdefault("type", "string")
        if not isinstance(kind, str):
            raise self.error(f"A list of types ('type' at {path}) is not supported; use 'anyOf'.")
        if kind == "string" and node.get("format", "date") not in FORMATS:
            raise self.error(f"The format {node['format']!r} at {path} is not supported.")
        if kind == "array":
            node["items"] = self._plain(node.get("items"), f"{path}/items", inside)
        if kind == "object":
            children = node.get("properties", {})
            if not children and node.get("additionalProperties"):
                raise self.error(f"Free names of fields ('additionalProperties' at {path}) are not supported.")
            node["properties"] = {
                name: self._plain(child, f"{path}/{name}", inside) for name, child in children.items()
            }
        return node

    def _target(self, reference: str) -> Node:
        definitions: dict[str, Node] = self._root.get("$defs", {})
        name = reference.removeprefix("#/$defs/")
        if name not in definitions:
            raise self.error(f"The $ref {reference!r} is not in the schema's $defs.")
        return definitions[name]


def schema_in_text(text: str) -> Node | None:
    """Find the first JSON schema of an object in ``text``, as pydantic-ai's prompted output puts it there."""
    for start in (match.start() for match in re.finditer("{", text)):
        try:
            found: Any = json.JSONDecoder().raw_decode(text, start)[0]
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("properties"), dict):
            return found
    return None
