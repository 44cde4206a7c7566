"""How far a judge agrees with people: measured on replies that they labelled good or bad."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pydantic import BaseModel

from include.evaluation.cases import Case
from include.evaluation.statistics import wilson

FIELDS = ("passed",)


class Agreement(BaseModel):
    """A judge's judgements beside the labels.

    :param agreed: how many of `cases` are judged as they are labelled; where there is no judgement, it is not.
    :param most: how many have the label that most have, with which a judge agrees that always says the same.
    """

    model: str
    cases: int
    agreed: int
    most: int

    def line(self) -> str:
        """Say it in a line of Markdown."""
        share = wilson(self.agreed / self.cases, self.cases)
        line = f"The judge `{self.model}` agrees with {self.agreed} of {self.cases} labels: {share.percent()}."
        if share.low > self.most / self.cases:
            return line
        return (
            f"{line} **Too few labels, or too little agreement, to tell it from a judge that always says the same** "
            f"({100 * self.most / self.cases:.0f} %): do not rely on *judged*."
        )


async def measure_agreement(
    model: str, cases: Sequence[Case], judge: Callable[[str, str], Awaitable[bool | None]]
) -> Agreement:
    """Let a judge judge labelled replies.

    :param cases: their `input` has `ticket` and `reply`, and their label is `passed`.
    :param judge: given both, says whether the reply passes; None if it gives no judgement.
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
