"""Choosing among fixed options: an enum's value, true or false, which tool.

Asked which label fits, the model gives nearly all texts the same one. Two things get more out of it:

- `likeliest` compares how likely each option is with how likely it is when the user's last text is replaced by a
  neutral one (contextual calibration).
- `closest` compares whole expectations. What would the model write after the user's text, what after a text
  that is only the option itself? The option whose next-token distribution is explained best by the text's own
  is chosen, again relative to neutral texts. This needs one look at the next token per cue, whatever the number
  of options, as those of the options and of neutral texts are remembered.

Measured with `python -m benchmarks.model_quality`, as shares of right labels: incidents 0.60 (a JSON grammar alone
0.37), reviews 1 to 60, on which the cues were picked, 0.60 (0.52, nearly all one label), reviews 61 to 200 0.50 (0.44).
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from .conversation import Conversation
from .engine import Engine

NEUTRAL_TEXTS = ("N/A", "", "...")
MORE_CUES = ('In one word: "', 'Verdict: "')
REMEMBERED = 1024
RARE = -12.0
Expectation = dict[bytes, float]


class Chooser:
    """Ranks options; remembers what the model expects after prompts that don't hold the user's text."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: OrderedDict[Hashable, dict[Any, float]] = OrderedDict()
        self._lock = threading.Lock()

    def likeliest(self, conversation: Conversation, cue: str, options: Sequence[str], plain: bool = False) -> int:
        """Index of the option that gains most from the user's text as the continuation of ``cue``.

        :param options: at least one; all different.
        :param plain: compare likelihoods as they are, for cues that no two requests share.
        """
        if len(options) == 1:
            return 0
        gains = _normal(self._engine.option_scores(conversation.prompt(cue), options))
        if not plain:
            key = (conversation.about("").prompt(cue), *options)
            habit = self._remembered(key, lambda: self._habit(conversation, cue, options))
            gains = {option: gain - habit[option] for option, gain in gains.items()}
        return max(range(len(options)), key=lambda i: gains[options[i]])

    def _habit(self, conversation: Conversation, cue: str, options: Sequence[str]) -> dict[str, float]:
        """Mean log scores of the options over the neutral texts."""
        scores = [
            _normal(self._engine.option_scores(conversation.about(text).prompt(cue), options)) for text in NEUTRAL_TEXTS
        ]
        return {option: sum(score[option] for score in scores) / len(scores) for option in options}

    def closest(self, conversation: Conversation, cue: str, meanings: Sequence[str]) -> list[int]:
        """Indexes of the options, best first.

        :param cue: the start of the answer, up to where an option would follow.
        :param meanings: for each option, what a user might write who means just that.
        """
        if len(meanings) == 1:
            return [0]
        totals = [0.0] * len(meanings)
        for start in (cue, *MORE_CUES):
            found = dict(self._engine.next_tokens(conversation.prompt(start)))
            habits = [self._expected(conversation.about(text).prompt(start)) for text in NEUTRAL_TEXTS]
            for i, meaning in enumerate(meanings):
                option = self._expected(conversation.about(meaning).prompt(start))
                usual = sum(_explained(option, habit) for habit in habits) / len(habits)
                totals[i] += _explained(option, found) - usual
        return sorted(range(len(meanings)), key=lambda i: -totals[i])

    def _expected(self, prompt: str) -> Expectation:
        return self._remembered(prompt, lambda: dict(self._engine.next_tokens(prompt)))

    def _remembered(self, key: Hashable, work: Callable[[], dict[Any, float]]) -> dict[Any, float]:
        """The result of ``work`` for ``key``, from memory if possible."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = work()
        with self._lock:
            self._known[key] = found
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return found


def _explained(option: Expectation, found: Expectation) -> float:
    """Minus the Kullback-Leibler divergence of ``found`` from ``option``: 0 if they are the same, else less."""
    return sum(math.exp(logprob) * (found.get(token, RARE) - logprob) for token, logprob in option.items())


def _normal(scores: dict[str, float]) -> dict[str, float]:
    """Log scores shifted so that their probabilities add up to 1."""
    top = max(scores.values())
    total = top + math.log(sum(math.exp(score - top) for score in scores.values()))
    return {option: score - total for option, score in scores.items()}
