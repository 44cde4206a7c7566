"""Rules for every HTTP call to a provider: where it may go, how long it may take, which failures are temporary."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from httpx2 import AsyncClient, InvalidURL, ReadTimeout, Request, Response, create_ssl_context

from include.common.shown import UNREADABLE, shown_url

# The status that stands for a redirect to another host.
MISDIRECTED = 421

# Shared by all clients of a process: reading the certificates takes 0.06 s of CPU.
ssl_context = cache(create_ssl_context)


def is_passing_status(status: int) -> bool:
    """Return whether the same request may succeed later: time-out, conflict, too many requests, server error."""
    return status in (408, 409, 429) or status >= 500


def is_refusal_status(status: object) -> bool:
    """Return whether the request itself is at fault, so that sending it again cannot help."""
    return isinstance(status, int) and 400 <= status < 500 and not is_passing_status(status)


def check_host(conn_id: str, host: str | None) -> None:
    """Check that a connection's host is a URL in which a login, if it has one, has a clear end.

    :raises AirflowFailException: it is not; the message does not show it.
    """
    if shown_url(host) == UNREADABLE:
        raise AirflowFailException(
            f"Connection {conn_id!r}: its host is not a valid URL. An example is https://host/v1; in a login, "
            "characters such as / ? # @ must be percent-encoded."
        )


class ProviderClient(AsyncClient):
    """An HTTP client whose calls end after their read time-out, and never go to another host.

    HTTP clients measure that time from one received byte to the next, so that a server that sends slowly could hold a
    call, and its task, for hours. A streamed body is read by the caller, at its own pace.

    :param hooks: for "request" and "response", as in HTTPX. The time that a request waits there does not count.
    """

    def __init__(self, hooks: Mapping[str, list[Any]], **settings: Any) -> None:
        after = [*hooks.get("response", []), stay_on_host]
        super().__init__(event_hooks={"response": after}, follow_redirects=True, verify=ssl_context(), **settings)
        self._before = hooks.get("request", [])

    async def send(self, request: Request, **options: Any) -> Response:
        """Send a request, as `httpx2.AsyncClient` does.

        :raises httpx2.ReadTimeout: the answer is not complete in time.
        """
        for wait in self._before:
            await wait(request)
        try:
            async with asyncio.timeout(request.extensions["timeout"]["read"]):
                return await super().send(request, **options)
        except TimeoutError:
            raise ReadTimeout("The whole answer did not arrive in time.", request=request) from None


async def stay_on_host(response: Response) -> None:
    """Follow no redirect to another host, nor to an unencrypted one: a hook for the responses of an HTTP client.

    What is sent (prompts, a key in the URL) is for the host of the connection. The response gets the status
    MISDIRECTED, as not every client treats a redirect without a location as an error.
    """
    if not response.has_redirect_location:
        return
    at = response.request.url
    try:
        to = at.join(response.headers["location"])
    except InvalidURL:
        to = None
    if to is None or to.host != at.host or to.scheme not in (at.scheme, "https"):
        response.status_code = MISDIRECTED
