"""The pyproject.toml of an Astro CLI 2 project, which lists the packages as requirements.txt does with CLI 1.x."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from local.copy import CopyError

TABLE = re.compile(r"^[ \t]*\[project\][ \t]*(?:#.*)?$", re.MULTILINE)
STRING = r"\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'"
COMMENT = r"#[^\n]*+"
ARRAY = re.compile(rf"^[ \t]*dependencies[ \t]*=[ \t]*\[(?:[^\]\"'#]|{STRING}|{COMMENT})*\]", re.MULTILINE)
LAST = re.compile(rf"(?:{STRING})(?=(?:[\s,]|{COMMENT})*\]$)")
COMMA = re.compile(rf"(?:\s|{COMMENT})*,")


def dependencies(text: str, where: str) -> list[str] | None:
    """Return `[project] dependencies`; None if this is not the file of an Astro CLI 2 project.

    :raises CopyError: the text is not valid TOML, or the project has its dependencies elsewhere.
    """
    if "astro" not in text:
        return None  # for other tools, and perhaps not even valid
    found = _parsed(text, where)
    if "astro" not in found.get("tool", {}):
        return None
    listed = found.get("project", {}).get("dependencies")
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise CopyError(
            f"{where}: the Astro CLI 2 needs a list `dependencies` in [project]. Add one that includes Airflow."
        )
    return listed


def with_dependencies(text: str, pins: Sequence[str], where: str) -> str:
    """Return the text with these pins at the end of `[project] dependencies`; nothing else changes.

    :raises CopyError: the list is written in a form that this function cannot extend.
    """
    table = TABLE.search(text)
    array = ARRAY.search(text, table.end()) if table else None
    if array is None:
        raise _by_hand(where, pins)
    old = array.group()
    last = LAST.search(old)
    if last and not COMMA.match(old, last.end()):
        old = f"{old[: last.end()]},{old[last.end() :]}"
    end = "\r\n" if "\r\n" in text else "\n"
    lines = "".join(f'    "{pin}",{end}' for pin in pins)
    new = f"{old[:-1].rstrip()}{end}{lines}]"
    added = text[: array.start()] + new + text[array.end() :]
    wanted = _parsed(text, where)
    wanted["project"]["dependencies"] += pins
    if _parsed(added, where) != wanted:
        raise _by_hand(where, pins)
    return added


def _by_hand(where: str, pins: Sequence[str]) -> CopyError:
    return CopyError(f"{where}: add these to [project] dependencies, then copy again: {', '.join(pins)}")


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CopyError(f"{where} is not valid TOML: {error}.") from error
