"""`include.common.shown`: what logs and errors hold of URLs and of text from outside."""

from __future__ import annotations

import logging
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.common.shown import HTTP_CLIENTS, UNREADABLE, quiet_http_clients, shown_text, shown_url, url_secrets

pytestmark = pytest.mark.one_stack

SECRET = st.text(st.characters(blacklist_categories=["Cs"]), min_size=4, max_size=20).map(lambda text: f"S3{text}3S")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host:8443/v1?key=secret#secret", "https://host:8443/v1"),
        ("https://host/v1/", "https://host/v1/"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
        ("secret@host/v1", "host/v1"),
        ("user:secret@host:9092", "host:9092"),
        ("kafka-1:9092,SASL_SSL://kafka-2:9093", "kafka-1:9092,SASL_SSL://kafka-2:9093"),
        ("u:secret@kafka-1:9092,u:secret@kafka-2:9092", "kafka-2:9092"),
        ("https://user:se/cret@host/v1", UNREADABLE),
        ("https://user:12/secret@host/v1", UNREADABLE),
        ("https://user:12?secret@host/v1", UNREADABLE),
        ("https://user:secret", UNREADABLE),
        ("https://host/v1\nERROR forged", UNREADABLE),
        ("", ""),
        (None, ""),
    ],
)
def test_a_url_is_shown_without_login_query_and_fragment(url, shown):
    assert shown_url(url) == shown


@given(SECRET, SECRET, SECRET)
def test_no_login_no_key_and_no_fragment_is_ever_shown_escaped_or_not(user, password, key):
    for escape in (lambda text: quote(text, safe=""), str):
        url = f"https://{escape(user)}:{escape(password)}@host/v1?api_key={escape(key)}#{escape(key)}"
        for text in (shown_url(url), shown_text(f"POST {url} failed", url_secrets(url))):
            assert not any(part in text for part in (user, password, key))


@given(st.text())
def test_any_text_is_one_short_printable_line(text):
    shown = shown_text(text, longest=100)
    assert shown.isprintable()
    assert len(shown) <= 100


def test_a_secret_that_a_server_repeats_is_replaced():
    secrets = url_secrets("https://user:pass%2Fword@host?key=abcdef") | {"sk-12345"}
    said = shown_text(
        "bad key sk-12345 for user with pass/word (pass%2Fword) and abcdef at https://user:x@host/?a", secrets
    )
    assert said == "bad key *** for *** with *** (***) and *** at https://host/"


def test_http_clients_are_quiet_also_where_all_others_are_not(caplog):
    with caplog.at_level(logging.DEBUG):
        quiet_http_clients()
        for name in HTTP_CLIENTS:
            logging.getLogger(name).info("HTTP Request: POST https://user:secret@host")
            logging.getLogger(f"{name}.inner").debug("https://user:secret@host")
    assert caplog.text == ""
