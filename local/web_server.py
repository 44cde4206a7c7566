"""Run an ASGI application on 127.0.0.1: as this process, or in a thread of it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from local.guard import HOST, Guard

SECONDS_TO_STOP = 1

CreateApp = Callable[[], ASGIApp]


@contextmanager
def in_a_thread(create_app: CreateApp) -> Iterator[str]:
    """Serve on a free port in a thread of this process until the block ends.

    :return: base URL for OpenAI clients, ``http://127.0.0.1:PORT/v1``. It accepts requests from the start.
    """
    with _listen(0) as listener:
        server = _server(create_app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join(timeout=SECONDS_TO_STOP + 5)


def until_stopped(create_app: CreateApp, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, which end this process at once, even in the middle of a request.

    :param port: 0 picks a free one.
    :raises OSError: the port is taken; nothing has been loaded then.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    with _listen(port) as listener:
        server = _server(create_app)
        logging.getLogger(__name__).info("ready on %s", _url(listener))
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again when it has shut down
            signal.signal(number, lambda *_: os._exit(0))
        server.run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    bound.listen(1024)
    return bound


def _server(create_app: CreateApp) -> uvicorn.Server:
    config = uvicorn.Config(
        Guard(create_app()),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    return uvicorn.Server(config)


def _url(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}/v1"
