"""Rounds of drafts: the score of each, the best one, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from include.common.markdown import as_markdown_cell, table
from include.evaluation.scorers import facts_in


def score_round(reply: str, judgement: Mapping[str, Any], must_say: Sequence[str]) -> dict[str, Any]:
    """Score a draft by the judgement of a model and by the words that must be in it.

    :param judgement: `include.evaluation.judge.Judgement`, as XCom has it.
    :return: `reply`, `passed`, `metrics` from 0 to 1, and `faults` for the next draft.
    """
    metrics = {"judged": float(judgement["passed"]), "facts": facts_in(reply, [[words] for words in must_say])}
    faults = [f"It does not say: {words}." for words in must_say if not facts_in(reply, [[words]])]
    if not judgement["passed"]:
        faults.append(judgement["reason"])
    return {"reply": reply, "passed": not faults, "metrics": metrics, "faults": "\n".join(faults)}


def best_round(rounds: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the round with the highest metrics (the last of several), with its number and a report on all rounds.

    :param rounds: what `score_round` returned, in order; None where a round was not needed.
    """
    done = [(number, each) for number, each in enumerate(rounds, 1) if each]
    number, best = max(done, key=lambda each: (sum(each[1]["metrics"].values()), each[0]))
    passed = f"passed in round {number}" if best["passed"] else f"not passed in {len(done)} rounds"
    rows = [
        [
            str(n),
            as_markdown_cell(each["reply"]),
            *(f"{value:.2f}" for value in each["metrics"].values()),
            as_markdown_cell(each["faults"]),
        ]
        for n, each in done
    ]
    report = table(["round", "reply", *best["metrics"], "faults"], rows)
    return {**best, "round": number, "report": report, "summary": f"{passed}: {best['reply']}"}


def spent_usd(ti: Any, rounds: int) -> float | None:
    """Return what the writer and the judge have cost in this run; None if a price is not known."""
    asked = [f"round_{number}.{name}" for number in range(1, rounds + 1) for name in ("write", "judge")]
    costs = [usage["cost_usd"] for usage in ti.xcom_pull(task_ids=asked, key="llm_usage") if usage]
    return sum(costs) if costs and None not in costs else None
