"""SmolLM2-135M-Instruct on llama.cpp, in this process: continue a text, or say what would come next.

llama.cpp computes the texts of all slots together. Each slot remembers its last prompt, so a prompt that starts like
the one before it costs only what is new.
"""

import json
import os
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import xllamacpp

from local.api_error import ApiError

from .weights import packaged, write_q8

CONTEXT = 8192
# As many answers as Airflow has tasks at once on a small machine, and a slot for looks beside any answer.
ANSWERS = 3
ASIDE = ANSWERS
# llama.cpp's threads wait for each other in a busy loop: on a core that something else wants, that costs more than a
# second thread gains (measured on 2 cores beside another program: 0.6 to 1.1 s per answer with one thread, 1.4 to 4 s
# with two).
THREADS = min(4, max(1, (os.cpu_count() or 1) // 2))
CANDIDATES = 400
REMEMBERED = 1024
# Greedy is nearest to the facts and to a context. The mild penalty breaks loops; a stronger one, or one with a
# longer memory, drives answers away from the words of a context. DRY would cost seconds per new server.
SAMPLING: dict[str, Any] = {"temperature": 0, "top_p": 0.9, "repeat_penalty": 1.05, "repeat_last_n": 32, "seed": 7}

Expectation = dict[bytes, float]
"""The 400 likeliest next tokens with their natural log probabilities."""


@dataclass(frozen=True)
class Completion:
    """A continuation: its text, tokens read and written, and whether the token limit ended it."""

    text: str
    prompt_tokens: int
    tokens: int
    cut: bool


class Engine:
    """The loaded language model; calls block, and outside of `turn` they come from one thread at a time."""

    def __init__(self) -> None:
        params = xllamacpp.CommonParams()
        params.n_ctx = CONTEXT * (ANSWERS + 1)
        params.n_parallel = ANSWERS + 1
        params.kv_unified = False
        params.cache_ram_mib = 0
        params.cpuparams.n_threads = THREADS
        params.cpuparams_batch.n_threads = THREADS
        params.cpuparams.poll = params.cpuparams_batch.poll = 0  # threads that wait must not eat a shared core
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.ui = False
        params.verbosity = -1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
        with tempfile.TemporaryDirectory() as folder:  # once loaded, the file is not needed by name
            params.model.path = str(Path(folder) / "weights.gguf")
            write_q8(packaged(), Path(params.model.path))
            self._server = xllamacpp.Server(params)
        self._free = dict.fromkeys(range(ANSWERS), "")
        self._changed = threading.Condition()
        self._mine = threading.local()
        self._aside = threading.Lock()
        self._remembered = lru_cache(REMEMBERED)(lambda prompt: self._look(prompt, ASIDE))

    @contextmanager
    def turn(self, opening: str) -> Iterator[None]:
        """Keep a slot for the calls of this thread, waiting for one if need be.

        :param opening: how all its prompts start; a slot whose last prompts started so is preferred.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            slot = next((slot for slot, last in self._free.items() if last == opening), next(iter(self._free)))
            del self._free[slot]
        self._mine.slot = slot
        try:
            yield
        finally:
            with self._changed:
                self._free[slot] = opening
                self._changed.notify()

    def complete(
        self, prompt: str, limit: int, *, stop: Sequence[str] = (), grammar: str | None = None, **sampling: Any
    ) -> Completion:
        """Continue ``prompt`` by at most ``limit`` tokens, up to ``stop`` or the end of the turn.

        :param grammar: GBNF that the continuation must follow.
        :param sampling: llama.cpp sampling settings on top of the defaults.
        :raises ApiError: status 400 if the prompt does not fit the context.
        """
        body = {**SAMPLING, **sampling, "prompt": prompt, "n_predict": limit, "stop": list(stop)}
        body["id_slot"] = getattr(self._mine, "slot", 0)
        if grammar is not None:
            body["grammar"] = grammar
        answer = self._ask(body)
        choice, usage = answer["choices"][0], answer["usage"]
        cut = choice["finish_reason"] == "length"
        return Completion(choice["text"], usage["prompt_tokens"], usage["completion_tokens"], cut)

    def count(self, text: str) -> int:
        """Count the tokens of ``text``."""
        body = json.dumps({"content": text}).encode()
        with urllib.request.urlopen(f"{self._server.listening_address}/tokenize", body) as answer:  # noqa: S310
            return len(json.load(answer)["tokens"])

    def expects(self, prompt: str) -> Expectation:
        """What the model expects after ``prompt``, a part of this thread's answer."""
        return self._look(prompt, getattr(self._mine, "slot", 0))

    def expects_usually(self, prompt: str) -> Expectation:
        """What the model expects after ``prompt``, which does not hold the user's text: remembered from then on."""
        with self._aside:
            return self._remembered(prompt)

    def _look(self, prompt: str, slot: int) -> Expectation:
        # The bias changes only which token is drawn: an end-of-text token would come without probabilities.
        drawn = {"n_predict": 1, "n_probs": CANDIDATES, "temperature": 0, "logit_bias": [["a", 100]]}
        answer = self._ask({"prompt": prompt, "id_slot": slot, **drawn})
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {bytes(token["bytes"]): token["logprob"] for token in found}

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._server.handle_completions({"cache_prompt": True, **body})
        if "choices" in answer:
            return answer
        error = answer.get("error", answer)
        if error.get("type") == "exceed_context_size_error":
            message = f"The prompt is longer than the context of {CONTEXT} tokens."
            raise ApiError(message, param="messages", code="context_length_exceeded")
        raise ApiError(f"The language model failed: {error.get('message', error)}", status=500)
