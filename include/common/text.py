"""Text from outside, made into text that every file, database and service takes."""

from __future__ import annotations

import re

# One escape of JSON. Those of the first group stay: a whole pair, and all that are not for UTF-16 or NUL.
_ESCAPE = re.compile(
    r"(\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|\\[^u])|(\\u0000)|\\u[dD][89a-fA-F][\da-fA-F]{2}",
    re.DOTALL,
)


def whole_characters(text: str) -> str:
    """Join halves of characters (surrogates) that make a pair, and replace the others by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_text(text: str) -> str:
    """Do as `whole_characters`, and drop NUL, which PostgreSQL does not store.

    Call it before text is fenced or compared: without its NULs, it may be what it was not before.
    """
    return whole_characters(text).replace("\0", "")


def clean_json(text: str) -> str:
    """Clean every string of a JSON text as `clean_text` does, also where its characters are escaped."""
    return _ESCAPE.sub(lambda escape: escape[1] or ("" if escape[2] else r"\ufffd"), clean_text(text))
