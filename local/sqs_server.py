"""The embedded queue: moto's server, which is a FAKE of Amazon SQS, in memory, behind SQS's own API.

It has no permissions and no account limits. Messages are lost when the stack stops.
"""

from __future__ import annotations

import json
import sys
from typing import Any

ACCOUNT = "123456789012"  # moto's
REGION = "us-east-1"
NAME = "inference-requests"
# Airflow masks a password in all logs, so this must be text that no path and no sentence contains.
NO_KEY = "no-key-is-needed"
# A request that waits for messages occupies one.
THREADS = 64


def sqs_command(port: int) -> list[str]:
    """Return the command that runs the server on this port of 127.0.0.1."""
    return [sys.executable, "-m", "local.sqs_server", str(port)]


def queue_url(port: int) -> str:
    """Return the URL of the queue of requests; the URLs of replies and dead letters start with it."""
    return f"http://127.0.0.1:{port}/{ACCOUNT}/{NAME}"


def sqs_connection(url: str) -> str:
    """Return a connection as JSON, for AIRFLOW_CONN_*, that uses the server of this queue for SQS only."""
    extra = {"region_name": REGION, "service_config": {"sqs": {"endpoint_url": _endpoint(url)}}}
    return json.dumps({"conn_type": "aws", "login": NO_KEY, "password": NO_KEY, "extra": extra})


def sqs_client(url: str) -> Any:
    """Return a client of the server of this queue."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "sqs",
        endpoint_url=_endpoint(url),
        region_name=REGION,
        config=Config(retries={"total_max_attempts": 1}),
        aws_access_key_id=NO_KEY,
        aws_secret_access_key=NO_KEY,
    )


def create_queues(url: str) -> bool:
    """Create the queues that are missing; return False if the server does not answer yet."""
    from botocore.exceptions import BotoCoreError

    client = sqs_client(url)
    name = url.rpartition("/")[2]
    try:
        for each in (name, f"{name}-replies", f"{name}-dead-letters"):
            client.create_queue(QueueName=each)
    except BotoCoreError:
        return False
    return True


def _endpoint(url: str) -> str:
    return "/".join(url.split("/")[:3])


def main() -> None:
    """Serve as `moto.server` does, but not to web pages: moto lets pages of any site read and write."""
    from a2wsgi import WSGIMiddleware
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    from local.web_server import until_stopped

    moto: Any = DomainDispatcherApplication(create_backend_app)  # the two packages' types of WSGI and ASGI differ
    app: Any = WSGIMiddleware(moto, workers=THREADS)
    until_stopped(lambda: app, int(sys.argv[1]))


if __name__ == "__main__":
    main()
