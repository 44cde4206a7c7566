"""How sure a measurement is: intervals of shares, an exact test of paired differences, the number of cases needed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

# 95 % of a normal distribution are within this many standard deviations of its mean.
Z = 1.959964


class Interval(NamedTuple):
    """A value, and the bounds that the true one is between with 95 % confidence."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """Show a share in percent, with its bounds."""
        return f"{100 * self.value:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


def wilson(share: float, cases: int) -> Interval:
    """Return the share with its Wilson interval, which also holds for few cases and for shares near 0 and 1.

    :raises ValueError: there are no cases.
    """
    if cases < 1:
        raise ValueError("A share of no cases has no interval.")
    centre = (share + Z * Z / (2 * cases)) / (1 + Z * Z / cases)
    half = Z / (1 + Z * Z / cases) * math.sqrt(share * (1 - share) / cases + Z * Z / (4 * cases * cases))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def difference_interval(differences: Sequence[float]) -> Interval:
    """Return the mean of paired differences (each from -1 to 1) with its interval, after Bonett and Price (2012).

    :raises ValueError: there are none.
    """
    number = len(differences) + 2  # as if one more case were won, and one more lost
    mean = sum(differences) / number
    variance = (sum(each * each for each in differences) + 2) / number - mean * mean
    half = Z * math.sqrt(variance / number)
    return Interval(sum(differences) / len(differences), max(-1.0, mean - half), min(1.0, mean + half))


def chance_of_loss(differences: Sequence[int]) -> float:
    """Return how likely a sum this low is if nothing has changed: the one-sided p-value of the sign-flip test.

    Without a change, a case is as likely to be won as to be lost. So each difference gets both signs, in all
    combinations, and those with a sum this low are counted. This is exact for any number of cases. With one trial for
    each case, it is McNemar's exact test.

    :param differences: for each case, in how many more trials it is passed now; negative: fewer.
    """
    sums: Counter[int] = Counter({0: 1})
    changed = [abs(each) for each in differences if each]
    for size in changed:
        flipped: Counter[int] = Counter()
        for total, ways in sums.items():
            flipped[total + size] += ways
            flipped[total - size] += ways
        sums = flipped
    found = sum(differences)
    ways_down = sum(ways for total, ways in sums.items() if total <= found)
    return ways_down / (1 << len(changed))


def chance_of_gain(differences: Sequence[int]) -> float:
    """Return how likely a sum this high is if nothing has changed. See `chance_of_loss`."""
    return chance_of_loss([-each for each in differences])


def cases_needed(alarm_rate: float, loss: float) -> int:
    """Return the least number of cases with which a loss can be significant.

    With fewer, even a loss in which no case got better has a chance above the alarm rate.

    :param alarm_rate: the chance of a false alarm that is accepted.
    :param loss: the share of cases that are lost.
    """
    lost_cases = math.ceil(round(-math.log2(alarm_rate), 9))
    return math.ceil(round(lost_cases / loss, 9))
