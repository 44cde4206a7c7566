"""Text from outside, made into text that every file, database and service accepts."""

from __future__ import annotations

import re

# One JSON escape. The first group stays: a surrogate pair, or an escape other than `\u`.
_ESCAPE = re.compile(
    r"(\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|\\[^u])|(\\u0000)|\\u[dD][89a-fA-F][\da-fA-F]{2}",
    re.DOTALL,
)


def whole_characters(text: str) -> str:
    """Join the halves of characters (surrogates) that make a pair, and replace lone ones with U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_text(text: str) -> str:
    """Apply `whole_characters`, and drop NUL, which PostgreSQL does not store.

    Call it before text is fenced or compared: without its NULs, it may match what it did not match before.
    """
    return whole_characters(text).replace("\0", "")


def clean_json(text: str) -> str:
    """Clean every string of a JSON text as `clean_text` does, also where its characters are escaped."""
    return _ESCAPE.sub(lambda escape: escape[1] or ("" if escape[2] else r"\ufffd"), clean_text(text))
