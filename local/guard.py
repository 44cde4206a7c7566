"""Who may talk to the local stack's servers: programs of the user who started it, and its own pages.

They listen on 127.0.0.1, which keeps out other machines, but neither pages that are open in a browser here nor other
users of this machine. And Airflow's server gives a token to anyone who asks, as it has no passwords here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HOST = "127.0.0.1"
OWN_NAMES = (HOST, "localhost", "[::1]")
# Where Airflow hands out tokens, which all its other paths require. Only for programs of this user.
LOGIN = "/auth/"
# The method and headers of a request that a browser sends when a person follows a link.
LINK = ("GET", "navigate", "document")
TCP_TABLE = Path("/proc/net/tcp")


def host_name() -> str:
    """Return the host at which Airflow's processes reach each other; a setting of Airflow names this function."""
    return HOST


def refusal(method: str, headers: Mapping[str, str]) -> str:
    """Return why a request is refused; empty if it is not.

    A page whose host name points to 127.0.0.1 (DNS rebinding) is detected by that name; a page of another site, or of
    another port of this machine, by the headers that browsers add. A link on such a page may still lead here.

    :param headers: with lower-case names.
    """
    host = headers.get("host", "")
    name, port = re.fullmatch(r"(.*?)((?::\d+)?)", host, re.DOTALL).groups()  # type: ignore[union-attr]
    if name.lower() not in OWN_NAMES:
        return f"This is not {host[:100]!a}: the local stack answers at 127.0.0.1 and localhost only."
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is None:  # a program, or an old browser
        is_own = origin in (None, *(f"http://{own}{port}" for own in OWN_NAMES))
    else:
        is_link = (method, headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == LINK
        is_own = site in ("none", "same-origin") or is_link
    return "" if is_own else "Refused: the request comes from a page of another site or port."


def is_stranger(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """Return whether the other end of a connection on 127.0.0.1 is another user's. Only Linux can say."""
    if not TCP_TABLE.exists():
        return False
    rows = [line.split() for line in TCP_TABLE.read_text().strip().split("\n")[1:]]
    if all(row[1] != _in_table(server) for row in rows):
        return False  # not the table of this network
    ends = [_in_table(client), _in_table(server)]
    owners = {int(row[7]) for row in rows if row[1:3] == ends}
    return not owners or bool(owners - {0, os.getuid()})


def _in_table(address: tuple[str, int]) -> str:
    number = int.from_bytes(bytes(map(int, address[0].split("."))), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"


class Guard:
    """ASGI middleware that refuses strangers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = ""
        if scope["type"] in ("http", "websocket"):
            reason = refusal(scope.get("method", "GET"), Headers(scope=scope))
            if not reason and scope["path"].startswith(LOGIN) and is_stranger(scope["client"], scope["server"]):
                reason = "Refused: the local stack belongs to another user of this machine."
        if reason:
            await PlainTextResponse(f"{reason}\n", 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
