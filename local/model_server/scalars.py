"""Strings and numbers of a JSON answer: grammars for their form, and repairs that keep them within bounds."""

import math
import re

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
    "email": 'root ::= [a-z] [a-z0-9.]{1,20} [a-z0-9] "@" [a-z] [a-z0-9]{1,20} ".com\\""',
    "uri": 'root ::= "https://" [a-z] [a-z0-9]{1,20} ".com" ("/" [a-z0-9]{1,12}){0,3} "\\""',
}


def string_grammar(node: Node) -> str:
    """Return GBNF for a string after its opening quote, including the closing one."""
    if "format" in node:
        return FORMAT_GRAMMARS[node["format"]]
    least = min(max(node.get("minLength", 1), 1), 400)
    return f'root ::= [^"\\\\\\x00-\\x1F\\x7F]{{{least},}} "\\""'


def string_value(text: str, cut: bool, node: Node) -> str:
    """Return the generated ``text`` as a value, shortened to a whole sentence or word if it was cut."""
    value = text.strip()
    if "format" in node:
        return value
    longest = node.get("maxLength", math.inf)
    if len(value) > longest:
        value, cut = value[:longest], True
    least = node.get("minLength", 0)
    shortened = whole(value) if cut else value
    return (shortened if len(shortened) >= least else value).ljust(least, ".")


def whole(text: str) -> str:
    """Cut ``text`` after its last sentence; if it has none, without its last, possibly broken word."""
    sentences = re.match(r"(?s).*[.!?](?=\s|$)", text)
    if sentences:
        return sentences.group().strip()
    head, _, _ = text.rpartition(" ")
    return (head or text).strip(" ,;:-")


def number_grammar(node: Node) -> str:
    """Return GBNF for a number and the character after it."""
    sign = '"-"? ' if bounds(node)[0] < 0 else ""
    decimals = "" if node["type"] == "integer" else ' ("." [0-9]{1,3})?'
    return f'root ::= {sign}("0" | [1-9] [0-9]{{0,8}}){decimals} [,}}\\]\\n ]'


def number_value(text: str, node: Node) -> int | float:
    """Return the number in ``text``, moved into the bounds that the schema sets."""
    found = re.match(r"-?\d+(\.\d+)?", text)
    low, high = bounds(node)
    value = min(max(float(found.group()) if found else 0.0, low), high)
    return int(value) if node["type"] == "integer" else value


def bounds(node: Node) -> tuple[float, float]:
    """Return the least and greatest value allowed, both inclusive; infinite where the schema sets none."""
    step = 1 if node["type"] == "integer" else 1e-6
    low = max(node.get("minimum", -math.inf), node.get("exclusiveMinimum", -math.inf) + step)
    high = min(node.get("maximum", math.inf), node.get("exclusiveMaximum", math.inf) - step)
    return low, high


def digits(node: Node) -> list[int]:
    """Return all integers that a bounded node allows if each has one digit, else an empty list."""
    low, high = bounds(node)
    return list(range(int(low), int(high) + 1)) if node["type"] == "integer" and 0 <= low <= high <= 9 else []
