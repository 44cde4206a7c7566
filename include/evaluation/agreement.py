"""How often a judge agrees with people, measured on replies that they labelled good or bad."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pydantic import BaseModel

from include.evaluation.cases import Case
from include.evaluation.statistics import wilson

FIELDS = ("passed",)


class Agreement(BaseModel):
    """A judge's judgements beside the labels.

    :param agreed: how many of `cases` are judged as they are labelled; a missing judgement does not count.
    :param most: how many have the most frequent label, which is what a judge that always says the same agrees with.
    """

    model: str
    cases: int
    agreed: int
    most: int

    def line(self) -> str:
        """Return it as a line of Markdown."""
        share = wilson(self.agreed / self.cases, self.cases)
        line = f"The judge `{self.model}` agrees with {self.agreed} of {self.cases} labels: {share.percent()}."
        if share.low > self.most / self.cases:
            return line
        return (
            f"{line} **Too few labels, or too little agreement, to distinguish it from a judge that always says the "
            f"same** ({100 * self.most / self.cases:.0f} %): do not rely on *judged*."
        )


async def measure_agreement(
    model: str, cases: Sequence[Case], judge: Callable[[str, str], Awaitable[bool | None]]
) -> Agreement:
    """Measure a judge on labelled replies.

    :param cases: their `input` has `ticket` and `reply`, and their label is `passed`.
    :param judge: returns whether a reply to a ticket passes; None if it gives no judgement.
    """
    asked: list[dict[str, str]] = [case.input for case in cases if isinstance(case.input, dict)]
    judged = await asyncio.gather(*(judge(each["ticket"], each["reply"]) for each in asked))
    labels = [bool(case.expected["passed"]) for case in cases]
    return Agreement(
        model=model,
        cases=len(cases),
        agreed=sum(given is label for given, label in zip(judged, labels, strict=True)),
        most=max(sum(labels), len(labels) - sum(labels)),
    )
