"""Running the emulator: as a process of its own, or in a thread for tests."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from .app import EMBEDDING_MODEL, JOB_SECONDS, create_app

HOST = "127.0.0.1"
SECONDS_TO_STOP = 1


def _listen(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    bound.listen(1024)
    return bound


def _server(
    folder: Path, upstream: str | None, job_seconds: float, token: str | None, embedding_model: str
) -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(folder, upstream, job_seconds, token, embedding_model),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    return uvicorn.Server(config)


@contextmanager
def serve(
    folder: Path,
    upstream: str | None = None,
    job_seconds: float = JOB_SECONDS,
    port: int = 0,
    token: str | None = None,
    embedding_model: str = EMBEDDING_MODEL,
) -> Iterator[str]:
    """Run the emulator in a thread of this process until the block ends.

    :param folder: where its state is kept.
    :param upstream: base URL of the OpenAI-compatible server that has the models; without one it answers no questions.
    :param job_seconds: how long a job takes.
    :param port: port on 127.0.0.1; 0 picks a free one.
    :param token: the only API key that is accepted; any is if there is none.
    :param embedding_model: the model of the server behind that finds the nearest examples.
    :return: base URL for OpenAI clients, ``http://127.0.0.1:PORT/v1``. It accepts requests from the start.
    :raises OSError: if the port is taken.
    """
    with _listen(port) as listener:
        server = _server(folder, upstream, job_seconds, token, embedding_model)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(timeout=SECONDS_TO_STOP + 5)


def run(
    port: int, folder: Path, upstream: str | None, job_seconds: float, token: str | None, embedding_model: str
) -> None:
    """Serve until SIGTERM or Ctrl-C, then end the process at once: nothing that was acknowledged is lost.

    :raises OSError: if the port is taken.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("python_multipart").setLevel(logging.WARNING)
    with _listen(port) as listener:
        server = _server(folder, upstream, job_seconds, token, embedding_model)
        logging.getLogger(__name__).info("ready on http://%s:%d/v1", HOST, listener.getsockname()[1])
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again when it has shut down
            signal.signal(number, lambda *_: os._exit(0))
        server.run(sockets=[listener])
