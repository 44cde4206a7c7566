"""How many lines a pattern brings: all of them, and those of code, without blank lines, comments and docstrings."""

from __future__ import annotations

import ast
import io
import tokenize
from functools import cache
from pathlib import Path
from typing import NamedTuple

from local.copy.needs import Pattern
from local.environment import PROJECT

LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Lines(NamedTuple):
    """Numbers of lines."""

    all: int
    code: int


def lines_of_include(pattern: Pattern) -> Lines:
    """Count the lines of the modules that a pattern brings."""
    counted = [_count(PROJECT / path) for path in pattern.modules]
    return Lines(sum(lines.all for lines in counted), sum(lines.code for lines in counted))


@cache
def _count(path: Path) -> Lines:
    text = path.read_text(encoding="utf-8")
    return Lines(len(text.splitlines()), len(code_lines(text)))


def code_lines(text: str) -> set[int]:
    """Find the numbers of the lines of code: all lines of a string count, those of a docstring do not."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            found.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return found
