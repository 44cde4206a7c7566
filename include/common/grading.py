"""Grade answers without a model."""

from __future__ import annotations

import re


def word_recall(answer: str, expected: str) -> float:
    """Return the share of the expected words that are in the answer, from 0 to 1; case does not matter.

    :raises ValueError: the expected answer has no words.
    """
    wanted, said = (set(re.findall(r"\w+", text.lower())) for text in (expected, answer))
    if not wanted:
        raise ValueError("The expected answer has no words to compare with.")
    return len(wanted & said) / len(wanted)
