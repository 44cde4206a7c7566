"""Text from outside, made safe to show in logs, errors and XComs.

A URL may hold a login or a key, and an answer of a server may quote the request.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

LONGEST_TEXT = 500
# For a name or a code from a server.
LONGEST_NAME = 100
SHORTEST_SECRET = 4
# At INFO they write a line per request, with its whole URL; at DEBUG also headers and bodies.
HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "openai")
# Shown for a URL that is not valid, as it is unclear where its login ends.
UNREADABLE = "<a URL that cannot be read>"
URL = re.compile(r"""(?<![\w+.-])[\w+.-]++://[^\s"'<>]+""")
SERVER = re.compile(r"(?:[\w.+%~-]*|\[[0-9A-Fa-f:.%]+\])(?::\d{0,5})?")


def shown_url(url: object) -> str:
    """Return a URL, or servers such as `host:9092,host:9093`, without login, query and fragment."""
    text = str(url or "")
    return _shown(text) if "@" in text else ",".join(map(_shown, text.split(",")))


def _shown(url: str) -> str:
    scheme, separator, rest = url.strip().partition("://") if "://" in url else ("", "", url.strip())
    server, path, hidden = re.fullmatch(r"([^/?#]*)([^?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    server = server.rpartition("@")[2]
    # An "@" further on may be the end of a password with a "/" in it.
    if "@" in path + hidden or not SERVER.fullmatch(server) or not (path + scheme).isprintable():
        return UNREADABLE
    return f"{scheme}{separator}{server}{path}"


def shown_text(text: object, secrets: Iterable[str] = (), longest: int = LONGEST_TEXT) -> str:
    """Return text from outside as one line of at most `longest` characters, which cannot imitate lines of the log.

    Its URLs are as `shown_url` returns them; secrets of four characters and more are replaced.
    """
    text = str(text)
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    text = URL.sub(lambda url: shown_url(url[0]), text)
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:longest]


def url_secrets(url: object) -> set[str]:
    """Return the parts of a URL that `shown_url` leaves out, both as written and decoded."""
    try:
        parts = urlsplit(str(url or ""))
    except ValueError:
        return {str(url)}
    raw = [parts.username, parts.password, parts.query, parts.fragment, *re.split("[&=]", parts.query)[1::2]]
    return {form for value in raw if value for form in (value, unquote(value))}


def quiet_http_clients() -> None:
    """Let HTTP clients log warnings and errors only. Call it before the first request."""
    for name in HTTP_CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)
