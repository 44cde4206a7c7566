"""Choosing among fixed options: an enum's value, true or false, which tool.

Asked which label fits, the model gives nearly all texts the same one. Two things get more out of it:

- `likeliest` compares how likely each option is with how likely it is when the user's last text is replaced by a
  neutral one (contextual calibration).
- `closest` compares next-token distributions: those after the user's text with those after a text that is only the
  option itself. It chooses the option whose distribution is explained best by the text's, again relative to neutral
  texts. This takes one prediction per cue, however many options there are, as those of options and neutral texts are
  cached.

Measured with `python -m benchmarks.model_quality`, as shares of right labels: incidents 0.57 (a JSON grammar alone
0.40), reviews 1 to 60, on which the cues were picked, 0.63 (0.50, mostly one label), reviews 61 to 200 0.52 (0.42).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .conversation import Conversation
from .engine import Engine, Expectation

NEUTRAL_TEXTS = ("N/A", "", "...")
MORE_CUES = ('In one word: "', 'Verdict: "')
UNLIKELY = -20.0
RARE = -12.0


@dataclass
class Chooser:
    """Ranks options as the next part of the answer in one conversation."""

    engine: Engine
    conversation: Conversation
    _seen: dict[str, Expectation] = field(default_factory=dict)

    def likeliest(self, cue: str, options: Sequence[str], plain: bool = False) -> int:
        """Return the index of the option that gains most from the user's text as the continuation of ``cue``.

        Decided by the first token in which the options differ.

        :param options: at least one; all different.
        :param plain: compare likelihoods as they are, for cues that no two requests share.
        """
        if len(options) == 1:
            return 0
        shared = common_start(options)
        rests = [option[len(shared) :].encode() or b'"' for option in options]
        gains = [_score(self._expected(cue + shared), rest) for rest in rests]
        if not plain:
            for text in NEUTRAL_TEXTS:
                habit = self._usual(text, cue + shared)
                gains = [
                    gain - _score(habit, rest) / len(NEUTRAL_TEXTS) for gain, rest in zip(gains, rests, strict=True)
                ]
        return gains.index(max(gains))

    def closest(self, cue: str, meanings: Sequence[str]) -> list[int]:
        """Return the indexes of the options, best first.

        :param cue: the start of the answer, up to where an option would follow.
        :param meanings: for each option, what a user who means it might write.
        """
        if len(meanings) == 1:
            return [0]
        cues = (cue, *MORE_CUES)
        # Text by text, so that a cue is all that is new to the engine after the text's first.
        habits = [[self._usual(text, start) for start in cues] for text in NEUTRAL_TEXTS]
        options = [[self._usual(meaning, start) for start in cues] for meaning in meanings]
        found = [self._expected(start) for start in cues]

        def gain(option: Sequence[Expectation]) -> float:
            usual = sum(sum(map(_explained, option, habit)) for habit in habits) / len(habits)
            return sum(map(_explained, option, found)) - usual

        gains = [gain(option) for option in options]
        return sorted(range(len(meanings)), key=lambda i: -gains[i])

    def _expected(self, start: str) -> Expectation:
        if start not in self._seen:  # fields of one answer share most cues
            self._seen[start] = self.engine.expects(self.conversation.prompt(start))
        return self._seen[start]

    def _usual(self, text: str, start: str) -> Expectation:
        return self.engine.expects_usually(self.conversation.about(text).prompt(start))


def common_start(texts: Sequence[str]) -> str:
    """Return the longest common prefix."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _score(found: Expectation, rest: bytes) -> float:
    """Return the log probability of the tokens with which ``rest`` can start."""
    mass = sum(
        math.exp(p) for token, p in found.items() if token and (rest.startswith(token) or token.startswith(rest))
    )
    return math.log(mass) if mass > 0 else UNLIKELY


def _explained(option: Expectation, found: Expectation) -> float:
    """Return minus the Kullback-Leibler divergence of ``found`` from ``option``: 0 if they are equal, else less."""
    return sum(math.exp(logprob) * (found.get(token, RARE) - logprob) for token, logprob in option.items())
