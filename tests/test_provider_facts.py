"""What all calls to providers share: which failures may pass, and how a price is read."""

from __future__ import annotations

import math

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from hypothesis import given
from hypothesis import strategies as st

from include.common.prices import PRICE_KEY, listed_cost, read_price
from include.common.provider_http import is_passing_status, is_refusal_status
from include.jobs.service import is_passing

pytestmark = pytest.mark.one_stack

json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["input", "output", "cached"]) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.integers(400, 599))
def test_a_failed_request_may_pass_for_a_call_exactly_where_a_batch_sends_it_again(status):
    from httpx2 import Request, Response
    from openai import APIStatusError

    response = Response(status, request=Request("POST", "http://provider"))
    passing = is_passing(APIStatusError("no", response=response, body=None))

    assert passing is is_passing_status(status) is not is_refusal_status(status)


@given(json_values)
def test_every_price_is_a_number_for_both_kinds_of_tokens_or_refused_with_the_connections_name(stated):
    price, refused = None, ""
    try:
        price = read_price("a_connection", {PRICE_KEY: stated})
    except AirflowFailException as error:
        refused = str(error)
    if price:
        assert price.input >= 0 <= price.output
        assert math.isfinite(price.input + price.output)
    else:
        assert stated is None or "'a_connection', extra: usd_per_million_tokens" in refused


def test_a_price_is_per_million_tokens_of_the_question_and_of_the_answer():
    price = read_price("c", {PRICE_KEY: {"input": 0.5, "output": 2}})

    assert price is not None
    assert price.cost(1_000_000, 500_000) == 1.5
    assert read_price("c", {}) is None


def test_the_public_price_list_is_asked_by_the_models_name():
    assert listed_cost("gpt-4o-mini", 1_000_000, 1_000_000) == pytest.approx(0.75)
    assert listed_cost("our-own", 10, 10) is None
