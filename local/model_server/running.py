"""Running the server: as a process of its own, or in a thread for tests."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from .app import create_app

HOST = "127.0.0.1"
SECONDS_TO_STOP = 1


def _listen(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    bound.listen(128)
    return bound


def _server() -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(),
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    return uvicorn.Server(config)


@contextmanager
def serve(port: int = 0) -> Iterator[str]:
    """Run the server in a thread of this process until the block ends.

    :param port: port on 127.0.0.1; 0 picks a free one.
    :return: base URL for OpenAI clients, ``http://127.0.0.1:PORT/v1``. It accepts requests from the start.
    :raises OSError: if the port is taken.
    """
    with _listen(port) as listener:
        server = _server()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(timeout=SECONDS_TO_STOP + 5)


def run(port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, then end the process, at once even if the model is in mid-sentence.

    :raises OSError: if the port is taken.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    with _listen(port) as listener:
        server = _server()
        logging.getLogger(__name__).info("ready on http://%s:%d/v1", HOST, listener.getsockname()[1])
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
        ):  # uvicorn raises the signal again when it has shut down
            signal.signal(number, lambda *_: os._exit(0))
        server.run(sockets=[listener])
