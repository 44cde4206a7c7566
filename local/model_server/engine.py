"""SmolLM2-135M-Instruct on llama.cpp, in this process: continue a text, or predict the next token.

llama.cpp remembers the last prompts, so a prompt that starts like an earlier one costs only what is new.
"""

import json
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import xllamacpp

from local.api_error import ApiError

from .weights import packaged, write_q8

CONTEXT = 8192
SLOTS = 2
# llama.cpp's threads wait for each other in a busy loop: on a core that another program needs, that costs more than a
# second thread gains (measured on 2 cores beside another program: 0.6 to 1.1 s per answer with one thread, 1.4 to 4 s
# with two).
THREADS = min(4, max(1, (os.cpu_count() or 1) // 2))
CANDIDATES = 400
WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
REMEMBERED = 1024
# A slot's prompt is kept when another conversation takes the slot, as tasks of several DAGs alternate. 23 KB per token.
REMEMBERED_MIB = 128
# Greedy decoding stays closest to the facts and the context. The mild penalty breaks loops; a stronger one, or one with
# a longer memory, drives answers away from the words of the context. DRY would cost seconds per new server.
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
    """The loaded language model; calls block."""

    def __init__(self) -> None:
        params = xllamacpp.CommonParams()
        params.n_ctx = CONTEXT * SLOTS
        params.n_parallel = SLOTS
        params.kv_unified = False
        params.cache_ram_mib = REMEMBERED_MIB
        params.cpuparams.n_threads = THREADS
        params.cpuparams_batch.n_threads = THREADS
        params.cpuparams.poll = params.cpuparams_batch.poll = 0  # threads that wait must not eat a shared core
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.ui = False
        params.verbosity = -1
        with tempfile.TemporaryDirectory() as folder:  # once loaded, the file is not needed by name
            params.model.path = str(Path(folder) / "weights.gguf")
            write_q8(packaged(), Path(params.model.path))
            self._server = xllamacpp.Server(params)
        self.expects_usually = lru_cache(REMEMBERED)(self.expects)
        """As `expects`, but cached: for prompts without the user's text."""

    def complete(self, prompt: str, limit: int, *, grammar: str = "", **sampling: Any) -> Completion:
        """Continue ``prompt`` by at most ``limit`` tokens, up to the end of the turn.

        :param grammar: GBNF that the continuation must follow; empty for any text.
        :param sampling: llama.cpp sampling settings on top of the defaults.
        :raises ApiError: status 400 if the prompt does not fit the context.
        """
        answer = self._ask({**SAMPLING, **sampling, "prompt": prompt, "n_predict": limit, "grammar": grammar})
        choice, usage = answer["choices"][0], answer["usage"]
        cut = choice["finish_reason"] == "length"
        return Completion(choice["text"], usage["prompt_tokens"], usage["completion_tokens"], cut)

    def count(self, text: str) -> int:
        """Count the tokens of ``text``."""
        body = json.dumps({"content": text}).encode()
        with WITHOUT_PROXY.open(f"{self._server.listening_address}/tokenize", body) as answer:
            return len(json.load(answer)["tokens"])

    def expects(self, prompt: str) -> Expectation:
        """Return what the model expects after ``prompt``."""
        # The bias changes only which token is drawn: an end-of-text token would come without probabilities.
        drawn = {"n_predict": 1, "n_probs": CANDIDATES, "temperature": 0, "logit_bias": [["a", 100]]}
        answer = self._ask({"prompt": prompt, **drawn})
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
