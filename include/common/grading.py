"""How good an answer is, without a model."""

from __future__ import annotations

import re


def word_recall(answer: str, expected: str) -> float:
    """The share of the expected words that are in the answer, from 0 to 1; case does not matter.

    :raises ValueError: nothing is expected.
    """
    wanted, said = (set(re.findall(r"\w+", text.lower())) for text in (expected, answer))
    if not wanted:
        raise ValueError("Nothing is expected of this answer: there is no word to compare it with.")
    return len(wanted & said) / len(wanted)
