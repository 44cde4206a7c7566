"""Strings and numbers of a JSON answer: grammars that keep them in form, repairs that keep them in bounds."""

import math
import re
from typing import Any

from .schema import Node

DAY = """
year ::= ("19" | "20") [0-9] [0-9]
month ::= "0" [1-9] | "1" [0-2]
short ::= month "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])
late ::= ("0" [13-9] | "1" [0-2]) "-" ("29" | "30")
last ::= ("01" | "03" | "05" | "07" | "08" | "10" | "12") "-31"
date ::= year "-" (short | late | last)
time ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] "Z"
"""
FORMAT_GRAMMARS = {
    "date": 'root ::= date "\\""' + DAY,
    "time": 'root ::= time "\\""' + DAY,
    "date-time": 'root ::= date "T" time "\\""' + DAY,
    "duration": 'root ::= "P" [1-9] [0-9]? "D\\""',
    "email": 'root ::= [a-z] [a-z0-9.]{1,20} [a-z0-9] "@" [a-z] [a-z0-9]{1,20} ".com\\""',
    "uri": 'root ::= "https://" [a-z] [a-z0-9]{1,20} ".com" ("/" [a-z0-9]{1,12}){0,3} "\\""',
    "uuid": 'root ::= x{8} "-" x{4} "-4" x{3} "-8" x{3} "-" x{12} "\\""\nx ::= [0-9a-f]',
    "binary": 'root ::= [a-z]{4,20} "\\""',
    "json-string": 'root ::= [0-9]{1,6} "\\""',
}
KEY_GRAMMAR = 'root ::= [A-Za-z] [A-Za-z0-9_ -]{1,30} "\\""'


def string_grammar(node: Node) -> str:
    """GBNF for the rest of a string after its opening quote, up to and with the closing one."""
    if node.get("format") in FORMAT_GRAMMARS:
        return FORMAT_GRAMMARS[node["format"]]
    least = min(max(int(node.get("minLength", 1)), 1), 400)
    return f'root ::= [^"\\\\\\x00-\\x1F\\x7F]{{{least},}} "\\""'


def string_value(text: str, cut: bool, node: Node) -> str:
    """The string that was meant by generated ``text``, shortened to a whole sentence or word if it was cut."""
    value = text.strip()
    if node.get("format") in FORMAT_GRAMMARS:
        return value
    longest = node.get("maxLength")
    if longest is not None and len(value) > longest:
        value, cut = value[:longest], True
    if cut:
        value = whole(value)
    least = node.get("minLength", 0)
    if len(value) < least:
        value = text[:longest] if longest is not None else text
    return value.ljust(least, ".")


def whole(text: str) -> str:
    """``text`` up to its last sentence end, or else without its last, possibly broken word."""
    sentences = re.match(r"(?s).*[.!?](?=\s|$)", text)
    if sentences:
        return sentences.group().strip()
    head, _, _ = text.rpartition(" ")
    return (head or text).strip(" ,;:-")


def number_grammar(node: Node, integer: bool) -> str:
    """GBNF for a number and the character after it."""
    sign = '"-"? ' if bounds(node, integer)[0] < 0 else ""
    decimals = "" if integer else ' ("." [0-9]{1,3})?'
    return f'root ::= {sign}("0" | [1-9] [0-9]{{0,8}}){decimals} [,}}\\]\\n ]'


def number_value(text: str, node: Node, integer: bool) -> int | float:
    """The number in ``text``, moved into the bounds and onto the step that the schema asks for."""
    found = re.match(r"-?\d+(\.\d+)?", text)
    value = float(found.group()) if found else 0.0
    low, high = bounds(node, integer)
    value = min(max(value, low), high)
    step = node.get("multipleOf", 1 if integer else None)
    if step:
        value = round(value / step) * step
        value += step if value < low else -step if value > high else 0
        value = round(value, 9)
    return int(value) if integer else value


def bounds(node: Node, integer: bool) -> tuple[float, float]:
    """Least and greatest value allowed, both inclusive; infinite where the schema sets none."""
    low = float(node.get("minimum", -math.inf))
    high = float(node.get("maximum", math.inf))
    nudge = 1.0 if integer else 1e-6
    if "exclusiveMinimum" in node:
        low = max(low, float(node["exclusiveMinimum"]) + nudge)
    if "exclusiveMaximum" in node:
        high = min(high, float(node["exclusiveMaximum"]) - nudge)
    return (float(math.ceil(low)) if integer and math.isfinite(low) else low), (
        float(math.floor(high)) if integer and math.isfinite(high) else high
    )


def few_integers(node: Node, most: int = 11) -> list[Any]:
    """All integers that a bounded node allows, or an empty list if there are more than ``most``."""
    low, high = bounds(node, integer=True)
    if not (math.isfinite(low) and math.isfinite(high)) or high - low >= most:
        return []
    return [n for n in range(int(low), int(high) + 1) if n % node.get("multipleOf", 1) == 0]
