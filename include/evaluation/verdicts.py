"""How a result compares with the accepted one: better, worse, no significant difference, or too few cases to tell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from include.evaluation.results import Result, passed_share
from include.evaluation.statistics import (
    Interval,
    cases_needed,
    chance_of_gain,
    chance_of_loss,
    difference_interval,
)


class Outcome(StrEnum):
    """Only `BETTER` and `SAME` pass the gate. `WORSE` fails it. The others do neither."""

    BETTER = "better"
    SAME = "no significant difference"
    WORSE = "worse"
    TOO_FEW = "too few cases to tell"
    FIRST = "nothing to compare with"
    INCOMPLETE = "incomplete"


PASSED = (Outcome.BETTER, Outcome.SAME)


@dataclass(frozen=True)
class Verdict:
    """The outcome and the reason for it.

    :param difference: of the shares of passed cases, with its interval.
    :param chance: the p-value of a loss (or of a gain, where there are more gains); None where nothing was compared.
    """

    outcome: Outcome
    reason: str
    difference: Interval | None = None
    chance: float | None = None


def judge_change(result: Result, accepted: Result | None, alarm_rate: float, loss: float) -> Verdict:
    """Compare a result with the accepted one, case by case.

    Without a change, `WORSE` has a chance of at most `alarm_rate`, and so has `BETTER`.

    :param loss: the loss that the gate must find: see `include.evaluation.subjects.Subject`.
    """
    cases, needed = len(result.trials), cases_needed(alarm_rate, loss)
    if missing := missing_metrics(result, accepted):
        return Verdict(Outcome.INCOMPLETE, f"answers lack the metric {', '.join(missing)}")
    new = sorted(result.metrics.keys() - accepted.metrics.keys()) if accepted and accepted.metrics else []
    if accepted is None or new:
        if cases < needed:
            return Verdict(Outcome.TOO_FEW, f"{cases} cases; {needed} are needed")
        reason = f"the accepted result lacks the metric {', '.join(new)}" if new else "no result was accepted yet"
        return Verdict(Outcome.FIRST, reason)
    keys = [key for key in result.trials if key in accepted.trials]
    pairs = [(result.trials[key], accepted.trials[key]) for key in keys]
    # In whole trials: with 3 trials now and 2 before, a passed one counts 2 now and 3 before.
    changes = [
        sum(trial.passed for trial in now) * len(before) - sum(trial.passed for trial in before) * len(now)
        for now, before in pairs
    ]
    gained, lost = sum(each > 0 for each in changes), sum(each < 0 for each in changes)
    loss_chance, gain_chance = chance_of_loss(changes), chance_of_gain(changes)
    outcome = Outcome.SAME
    if loss_chance <= alarm_rate:
        outcome = Outcome.WORSE
    elif len(keys) < needed:
        outcome = Outcome.TOO_FEW
    elif gain_chance <= alarm_rate:
        outcome = Outcome.BETTER
    reason = f"{lost} of {len(keys)} cases lost, {gained} gained"
    if outcome is Outcome.TOO_FEW:
        reason += f"; {needed} cases are needed"
    differences = [passed_share(now) - passed_share(before) for now, before in pairs]
    difference = difference_interval(differences) if differences else None
    return Verdict(outcome, reason, difference, min(loss_chance, gain_chance))


def missing_metrics(result: Result, accepted: Result | None) -> list[str]:
    """Return the metrics that an answer lacks, and that the accepted result or another answer has.

    A trial without an answer to score lacks none: it is not passed.
    """
    wanted = {**result.metrics, **(accepted.metrics if accepted else {})}
    scored = [trial for trial in result.all_trials if not trial.error]
    return [name for name in wanted if any(name not in trial.metrics for trial in scored)]
