"""`include.common.text`: text that every file, database and service takes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.common.text import clean_json, clean_text, whole_characters

pytestmark = pytest.mark.one_stack

# With halves of characters (surrogates) and NULs, which hypothesis leaves out unless it is asked.
ANY_TEXT = st.text(st.characters(categories=None) | st.sampled_from('\0\ud83d\ude9a\\"u'))
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
)


@given(ANY_TEXT)
def test_cleaned_text_can_be_encoded_and_stored_and_is_clean(text):
    cleaned = clean_text(text)

    assert cleaned.encode().decode() == cleaned
    assert "\0" not in cleaned
    assert clean_text(cleaned) == cleaned


@given(st.text())
def test_text_without_halves_and_nulls_stays_as_it_is(text):
    assert whole_characters(text) == text
    assert clean_text(text) == text.replace("\0", "")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [("pair \ud83d\ude9a", "pair \U0001f69a"), ("\ud83d half", "\ufffd half"), ("\ude9a\ud83d", "\ufffd\ufffd")],
    ids=ascii,
)
def test_halves_that_make_a_pair_are_joined_and_others_replaced(text, cleaned):
    assert whole_characters(text) == cleaned


@given(ANY_JSON, st.booleans())
def test_json_has_cleaned_strings_whether_their_characters_are_escaped_or_not(value, escaped):
    found = json.loads(clean_json(json.dumps(value, ensure_ascii=escaped)))

    assert json.dumps(found) == json.dumps(cleaned(value))


def cleaned(value):
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    if isinstance(value, dict):
        return {clean_text(name): cleaned(each) for name, each in value.items()}
    return value


def test_json_without_such_characters_stays_letter_by_letter():
    text = '{"a": 1.0, "b": 1e400, "c": "\\\\u0000 \\\\ud83d \\ud83d\\ude9a \\n", "c": NaN'

    assert clean_json(text) == text
