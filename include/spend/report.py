"""A report of what a day cost, as Markdown with charts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from include.common.charts import bar_chart
from include.common.markdown import as_markdown_line, table
from include.common.results import publish, report
from include.spend.reading import Reading, only
from include.spend.sums import Sum, overview

DAYS_BEFORE = 6
MOST_BARS = 8
MOST_ROWS = 15


def write_report(day: date, week: Reading) -> dict[str, Any]:
    """Write `report.md` and its charts; return the day's totals, as the asset's event has them.

    :param week: the ledger of the day and of the DAYS_BEFORE days before it.
    """
    found = overview(week._replace(rows=only(week.rows, day={str(day)})), day, day)
    days = overview(week, day - timedelta(DAYS_BEFORE), day).days
    total = found.total
    totals = {
        "day": day.isoformat(),
        "cost_usd": round(total.cost_usd, 6),
        "failed_usd": round(total.failed_usd, 6),
        "calls": total.calls,
        "failed_calls": total.failed,
        "unpriced_calls": total.unpriced,
        "tokens": total.tokens,
        "by_dag": {each.name: round(each.cost_usd, 6) for each in found.dags},
    }
    parts = [
        f"**${total.cost_usd:,.4f}** for {total.calls:,} calls and {total.tokens:,} tokens of {total.attempts:,} "
        f"attempts of tasks. Attempts that failed cost ${total.failed_usd:,.4f}."
    ]
    if total.reused:
        parts.append(f"{total.reused:,} more were answered from the storage, which saved ${total.saved_usd:,.4f}.")
    if total.unpriced:
        parts.append(
            f"The price of {total.unpriced:,} calls is not known and not included. Set `usd_per_million_tokens` in the "
            "extra of their connection."
        )
    if week.unreadable:
        parts.append(f"{week.unreadable} files of the ledger cannot be read.")
    for name, sums in (("DAG", found.dags), ("model", found.models), ("prompt", found.prompts)):
        parts += [f"## By {name}", _table(name, sums)]
    publish("report.md", report(f"Spend on {day} (UTC)", *parts))
    by_cost = any(each.cost_usd for each in days)
    what = "US dollars" if by_cost else "tokens"
    for name, sums in (("by_day", days), ("by_dag", found.dags[:MOST_BARS]), ("by_model", found.models[:MOST_BARS])):
        bars = {each.name: each.cost_usd if by_cost else float(each.tokens) for each in sums}
        if bars:
            publish(f"{name}.svg", bar_chart(f"Spend {name.replace('_', ' ')}", what, {what: bars}))
    return totals


def _table(name: str, sums: Sequence[Sum]) -> str:
    rows = [
        [
            as_markdown_line(each.name),
            f"{each.cost_usd:,.4f}",
            f"{each.calls:,}",
            f"{each.tokens:,}",
            f"{each.failed:,}",
            f"{each.failed_usd:,.4f}",
        ]
        for each in sums[:MOST_ROWS]
    ]
    head = [name, "USD", "calls", "tokens", "failed calls", "USD of failed tries"]
    return table(head, rows) if rows else "Nothing."
