"""`include.sample.company_research`: the tools of the agents, and their numbers."""

from __future__ import annotations

from typing import get_args

import pytest

from include.sample.company_research import CompanyName, Topic, financial_figures, search_market_facts
from include.sample.data import companies

pytestmark = pytest.mark.one_stack


def test_financial_figures_are_those_of_the_data_with_growth_and_margin():
    assert financial_figures("Kestrel Fleet")[:2] == [
        "2022: revenue 21.4 million EUR, gross margin 61.2 %, operating margin -18.2 %, net income -4.3, "
        "cash 12.5, debt 6.0 million EUR, 182 employees",
        "2023: revenue 29.8 million EUR (+39 %), gross margin 63.9 %, operating margin -7.0 %, net income -2.6, "
        "cash 8.9, debt 8.0 million EUR, 231 employees",
    ]


@pytest.mark.parametrize("company", get_args(CompanyName))
def test_each_company_has_a_line_per_year_oldest_first(company):
    assert [line[:6] for line in financial_figures(company)] == ["2022: ", "2023: ", "2024: ", "2025: "]


def test_market_facts_are_all_those_of_the_topic_with_their_dates():
    every = companies()["Tretwald"]["market_facts"]
    expected = [f"{fact['date']}: {fact['text']}" for fact in every if fact["topic"] == "competition"]

    assert expected
    assert search_market_facts("Tretwald", "competition") == expected


def test_the_tools_know_the_companies_and_topics_of_the_sample_data_and_no_others():
    data = companies()

    assert list(get_args(CompanyName)) == list(data)
    assert set(get_args(Topic)) == {fact["topic"] for company in data.values() for fact in company["market_facts"]}
