"""Tools of the research and finance agents: look-ups in `companies.json`.

An agent reads a tool's docstring to decide when to call it, and the types of its parameters to call it correctly: a
company or topic that does not exist is refused before the tool runs, with the list of those that do.
"""

from __future__ import annotations

from typing import Literal, get_args

from airflow.providers.common.compat.sdk import AirflowFailException

from include.sample.data import companies

CompanyName = Literal[
    "Kestrel Fleet", "Brennholm Logistics", "Strombrae Charging", "Tretwald", "Glacivane", "Quoinfreight"
]
Topic = Literal["market size", "competition", "customers", "products", "regulation", "risks"]


def search_market_facts(company: CompanyName, topic: Topic) -> list[str]:
    """Dated facts about a company's market: size, competition, customers, products, regulation or risks."""
    facts = companies()[company]["market_facts"]
    return [f"{fact['date']}: {fact['text']}" for fact in facts if fact["topic"] == topic]


def financial_figures(company: CompanyName) -> list[str]:
    """A company's revenue, growth, margins, cash and debt, one line per fiscal year, oldest first."""
    lines, previous = [], None
    for year in companies()[company]["financials"]:
        revenue = year["revenue_meur"]
        growth = f" ({100 * (revenue / previous - 1):+.0f} %)" if previous else ""
        margin = 100 * year["operating_income_meur"] / revenue
        lines.append(
            f"{year['fiscal_year']}: revenue {revenue} million EUR{growth}, gross margin {year['gross_margin_pct']} %, "
            f"operating margin {margin:.1f} %, net income {year['net_income_meur']}, "
            f"cash {year['cash_meur']}, debt {year['debt_meur']} million EUR, {year['employees']} employees"
        )
        previous = revenue
    return lines


def revenue_by_year(company: str) -> list[float]:
    """Return a company's revenue in million EUR, one number per fiscal year, oldest first.

    :raises AirflowFailException: there is no such company; the message lists all companies.
    """
    if company not in get_args(CompanyName):
        known = ", ".join(get_args(CompanyName))
        raise AirflowFailException(f"There is no company {company!r}. There are: {known}.")
    return [year["revenue_meur"] for year in companies()[company]["financials"]]
