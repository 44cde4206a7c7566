"""The training examples that a tuned model's base is shown with a question, in place of any learning."""

import threading
from array import array
from functools import lru_cache
from itertools import islice, pairwise
from operator import itemgetter, mul
from typing import Any, NamedTuple

from include.fine_tuning.examples import examples
from local.api_error import ApiError

from .life import Job
from .store import Store
from .upstream import Upstream

# More shots, or whole questions, cost seconds per answer and gain little; the other way round nothing is gained at all.
SHOTS = 4
SHOWN_CHARACTERS = 100
MOST_EXAMPLES = 2000
_EMBEDDED_AT_ONCE = 100
_MODELS_IN_MEMORY = 16


class Shot(NamedTuple):
    """A user message of the training file, the answer to it, and the vector of the message."""

    question: str
    answer: str
    vector: "array[float]"


class Shots:
    """The examples of all tuned models. Its methods block: call them in threads."""

    def __init__(self, store: Store, upstream: Upstream, embedding_model: str) -> None:
        self._store = store
        self._upstream = upstream
        self._embedding_model = embedding_model
        self._lock = threading.Lock()
        self._of_file = lru_cache(maxsize=_MODELS_IN_MEMORY)(self._read)

    def put_before(self, job: Job, body: dict[str, Any]) -> dict[str, Any]:
        """A chat request with the nearest examples as turns between its system messages and the others."""
        messages = body.get("messages")
        question = _last_question(messages)
        if not isinstance(messages, list) or question is None:
            raise ApiError("There must be a user message with text.", param="messages")
        with self._lock:
            shots = self._of_file(job.training_file)
        (vector,) = self._upstream.embed(self._embedding_model, [question])
        scored = [(sum(map(mul, vector, shot.vector)), shot) for shot in shots]
        nearest = sorted(scored, key=itemgetter(0))[-SHOTS:]
        turns = [
            {"role": role, "content": text}
            for _, shot in nearest
            for role, text in (("user", shot.question[:SHOWN_CHARACTERS]), ("assistant", shot.answer))
        ]
        start = next((i for i, each in enumerate(messages) if each.get("role") not in ("system", "developer")), 0)
        return body | {"messages": [*messages[:start], *turns, *messages[start:]]}

    def _read(self, file: str) -> list[Shot]:
        """The examples of a file, with their vectors."""
        pairs = []
        with self._store.content(file).open("rb") as lines:
            for example in islice(examples(lines), MOST_EXAMPLES):
                for asked, answered in pairwise(example.messages):
                    if (asked.role, answered.role) == ("user", "assistant") and answered.weight != 0:
                        pairs.append((asked.content, answered.content))
        vectors: list[list[float]] = []
        for start in range(0, len(pairs), _EMBEDDED_AT_ONCE):
            texts = [question for question, _ in pairs[start : start + _EMBEDDED_AT_ONCE]]
            vectors += self._upstream.embed(self._embedding_model, texts)
        return [Shot(*pair, array("f", vector)) for pair, vector in zip(pairs, vectors, strict=True)]


def _last_question(messages: Any) -> str | None:
    """The text of the last user message, if there is any."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None
    contents = [message.get("content") for message in messages if message.get("role") == "user"]
    content = contents[-1] if contents else None
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) and content.strip() else None
