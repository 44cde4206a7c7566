"""Scores over time, as the page plots them: a plot for each subject and metric, a colour for each model and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from include.spend.scores import Score

WIDTH, HEIGHT, MARGIN = 360, 110, 8
# Colours of page.css; then they repeat.
COLOURS = 6


class Point(NamedTuple):
    """A score, its place on the plot, and the ends of its interval."""

    score: Score
    x: float
    y: float
    low: float
    high: float
    colour: int


class Version(NamedTuple):
    """A model and prompt that was measured, with its newest score."""

    colour: int
    runs: int
    newest: Score


@dataclass(frozen=True)
class Plot:
    """The scores of a subject in a metric: the oldest is left, `bottom` and `top` are the ends of the axis."""

    subject: str
    metric: str
    bottom: float
    top: float
    points: list[Point]
    versions: list[Version]


def plots(scores: Sequence[Score]) -> list[Plot]:
    """Return a plot for each subject and metric, by their names."""

    def what(score: Score) -> tuple[str, str]:
        return score.subject, score.metric

    return [_plot(list(group)) for _, group in groupby(sorted(scores, key=what), what)]


def _plot(scores: list[Score]) -> Plot:
    by_version: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        by_version.setdefault((score.model, score.fingerprint), []).append(score)
    colours = {version: number % COLOURS for number, version in enumerate(by_version)}
    ends = [end for score in scores for end in (score.value, score.low, score.high) if end is not None]
    bottom, top = min(0.0, *ends), max(1.0, *ends)
    first, last = scores[0].at.timestamp(), scores[-1].at.timestamp()

    def x(score: Score) -> float:
        share = (score.at.timestamp() - first) / (last - first) if last > first else 0.5
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)

    def y(value: float | None, score: Score) -> float:
        share = ((score.value if value is None else value) - bottom) / (top - bottom)
        return round(HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN), 1)

    points = [
        Point(
            each, x(each), y(None, each), y(each.low, each), y(each.high, each), colours[each.model, each.fingerprint]
        )
        for each in scores
    ]
    versions = [Version(colours[version], len(group), group[-1]) for version, group in by_version.items()]
    return Plot(scores[0].subject, scores[0].metric, bottom, top, points, versions[::-1])
