"""What customers write about, counted by words: without a model, so it is fast and deterministic."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from include.common.json_lines import read_lines
from include.common.markdown import table
from include.common.text import clean_text

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

LONGEST_LINE = 1_000_000

TOPICS = {
    "tracking": r"tracker|gps|position|map|offline|signal|dongle",
    "alerts": r"alert|alarm|sms|notification|sos",
    "billing": r"invoice|price|pay|charge|refund|bill|cost|plan",
    "reports": r"report|export|csv|pdf|chart",
    "support": r"support|helpdesk|hotline|answer|reply",
    "login": r"log ?in|password|user|account|invite|two-factor",
    "api": r"\bapi\b|webhook|integration",
}


def read_texts(files: Iterable[ObjectStoragePath]) -> list[str]:
    """Return the field `text` of every line of these JSON-lines files.

    :raises ValueError: names the file and the line that is not a JSON object with a text.
    """
    texts = []
    for file in files:
        with file.open("rb") as content:
            for number, line in read_lines(content, LONGEST_LINE):
                try:
                    text = json.loads(line or b"")["text"]
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise ValueError(f"{file}, line {number}: not a JSON object with the field 'text'.") from error
                texts.append(clean_text(str(text)))
    return texts


def count_topics(texts: Iterable[str]) -> Counter[str]:
    """Return in how many of the texts each topic occurs; "other" for texts on none of them."""
    counts: Counter[str] = Counter()
    for text in texts:
        found = [topic for topic, words in TOPICS.items() if re.search(words, text, re.IGNORECASE)]
        counts.update(found or ["other"])
    return counts


def top_topics(counts: Mapping[str, Counter[str]], most: int = 3) -> str:
    """Return the most frequent topics of all sources together, in words."""
    total = sum(counts.values(), Counter[str]())
    del total["other"]
    return ", ".join(f"{number} about {topic}" for topic, number in total.most_common(most)) or "nothing new"


def topic_table(counts: Mapping[str, Counter[str]]) -> str:
    """Return a Markdown table: a row per topic, the most frequent first, and a column per source."""
    total = sum(counts.values(), Counter[str]())
    rows = [[topic, *(str(count[topic]) for count in counts.values())] for topic, _ in total.most_common()]
    return table(["topic", *counts], rows)
