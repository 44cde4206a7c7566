"""JSON schemas as the writer needs them: references resolved, kinds named, what can't be written refused."""

from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]

from local.api_error import ApiError

Node = dict[str, Any]
UNSUPPORTED = (
    "not",
    "if",
    "patternProperties",
    "dependentRequired",
    "dependentSchemas",
    "contains",
    "$dynamicRef",
)
FORMATS = {
    "date",
    "date-time",
    "time",
    "duration",
    "email",
    "uri",
    "uuid",
    "binary",
    "password",
    "json-string",
}
# Deeper than this, the writer leaves out whatever is optional, so that recursive schemas end.
SHALLOW = 4
DEEPEST = 24


class Schema:
    """A checked schema that the writer can walk.

    :param root: JSON schema, draft 2020-12; references must point into itself.
    :param param: path of the schema in the request, for error messages.
    :raises ApiError: status 400 if the schema is malformed or uses a keyword that can't be written.
    """

    def __init__(self, root: Node, param: str) -> None:
        self.root = root
        self.param = param
        try:
            Draft202012Validator.check_schema(root)
        except SchemaError as error:
            path = ".".join(str(step) for step in error.absolute_path)
            raise self.error(f"Not a valid JSON schema{f' at {path}' if path else ''}: {error.message[:200]}") from None
        self._check(root, "", set())
        self._validator = Draft202012Validator(root)

    def error(self, message: str) -> ApiError:
        """An error that names the schema's place in the request."""
        return ApiError(message, param=self.param, code="invalid_json_schema")

    def is_valid(self, value: Any) -> bool:
        """Whether ``value`` conforms to the whole schema."""
        return bool(self._validator.is_valid(value))

    def resolve(self, node: Node | bool) -> Node:
        """Follow references, merge ``allOf`` and reduce ``const``, ``oneOf`` and lists of types."""
        if isinstance(node, bool):
            return {}
        seen = set()
        while "$ref" in node:
            reference = node["$ref"]
            if reference in seen:
                raise self.error(f"The reference {reference} leads to itself.")
            seen.add(reference)
            node = {**self._target(reference), **{key: value for key, value in node.items() if key != "$ref"}}
        for part in node.get("allOf", []):
            node = _merge(self.resolve(part), node)
        if "const" in node:
            return {**node, "enum": [node["const"]]}
        if "oneOf" in node:
            node = {**node, "anyOf": node["oneOf"]}
        if isinstance(node.get("type"), list) and "enum" not in node:
            rest = {key: value for key, value in node.items() if key not in ("type", "default", "description")}
            node = {**node, "anyOf": [{**rest, "type": kind} for kind in node["type"]]}
        return node

    def kind(self, node: Node) -> str:
        """What to write for a resolved node: enum, anyOf, any or the name of a JSON type."""
        for keyword in ("enum", "anyOf"):
            if keyword in node:
                return keyword
        if "type" in node:
            return str(node["type"])
        if "properties" in node or "additionalProperties" in node:
            return "object"
        return "array" if "items" in node or "prefixItems" in node else "any"

    def _target(self, reference: str) -> Node:
        found: Any = self.root
        steps = reference.removeprefix("#").split("/")[1:] if reference.startswith("#") else [reference]
        for step in steps:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise self.error(f"The reference {reference} points nowhere inside the schema.")
            found = found[key]
        if isinstance(found, bool):
            return {}
        if not isinstance(found, dict):
            raise self.error(f"The reference {reference} does not point to a schema.")
        return found

    def _check(self, node: Any, path: str, seen: set[int]) -> None:
        if not isinstance(node, dict) or id(node) in seen:
            return
        seen.add(id(node))
        for keyword in UNSUPPORTED:
            if keyword in node:
                raise self.error(f"The schema keyword {keyword!r} at {path or 'the top'} is not supported.")
        if node.get("format", "date") not in FORMATS:
            raise self.error(f"The format {node['format']!r} at {path or 'the top'} is not supported.")
        self.resolve(node)
        for keyword in ("properties", "$defs", "definitions"):
            for name, child in node.get(keyword, {}).items():
                self._check(child, f"{path}/{keyword}/{name}", seen)
        for keyword in ("items", "additionalProperties", "propertyNames"):
            self._check(node.get(keyword), f"{path}/{keyword}", seen)
        for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for i, child in enumerate(node.get(keyword, [])):
                self._check(child, f"{path}/{keyword}/{i}", seen)


def _merge(below: Node, above: Node) -> Node:
    properties = {**below.get("properties", {}), **above.get("properties", {})}
    required = [*below.get("required", []), *above.get("required", [])]
    merged = {**below, **{key: value for key, value in above.items() if key != "allOf"}}
    return merged | ({"properties": properties} if properties else {}) | ({"required": required} if required else {})
