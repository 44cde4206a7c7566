"""Where the storage of tests can be: a folder, a bucket on a fake of Amazon S3, or the memory of this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import pytest

BUCKET = "your-bucket"
REGION = "eu-central-1"
LOGIN, PASSWORD = "the-id-of-a-key", "the-secret-of-a-key"


def on_storage(*kinds: str) -> pytest.MarkDecorator:
    """Run a test with its storage on each of these.

    They are disk, s3 (by the environment), connection (S3 by `aws_default`, and the environment has no key), other (S3
    by another connection) and memory.
    """
    return pytest.mark.parametrize("storage", kinds, indirect=True)


def s3_client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the S3 API at `endpoint`, with a bucket; the environment leads there, too."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": LOGIN,
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint)
    if BUCKET not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    return client


def s3_connection(s3: Any) -> str:
    """A connection as JSON, for AIRFLOW_CONN_AWS_DEFAULT, that leads where this client does."""
    extra = {"endpoint_url": s3.meta.endpoint_url, "region_name": REGION}
    return json.dumps({"conn_type": "aws", "login": LOGIN, "password": PASSWORD, "extra": extra})


@contextmanager
def s3_requests() -> Iterator[list[str]]:
    """Yield the requests that the fake of S3 gets in the block: method and key or query, such as "PUT a/b.txt"."""
    from werkzeug.serving import WSGIRequestHandler

    made: list[str] = []

    def note(handler: Any, *_: Any) -> None:  # before the answer is sent
        _, _, what = unquote(handler.path).lstrip("/").partition(f"{BUCKET}")
        made.append(f"{handler.command} {what.lstrip('/')}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WSGIRequestHandler, "log_request", note)
        yield made


def new_storage(
    kind: str, request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Any]:
    """An empty storage: what GENAI_STORAGE is to be, and a path for the test to look at it by."""
    import fsspec
    from airflow.sdk.io import attach, store
    from upath import UPath

    prefix = uuid4().hex
    if kind == "memory":
        attach("memory", fs=fsspec.filesystem("memory"))
        return f"memory://{prefix}", UPath(f"memory://{prefix}")
    if kind == "disk":
        return f"file://{folder}", folder
    s3 = request.getfixturevalue("s3")
    monkeypatch.setattr(store, "_STORE_CACHE", {})
    path = UPath(
        f"s3://{BUCKET}/{prefix}",
        endpoint_url=s3.meta.endpoint_url,
        key=LOGIN,
        secret=PASSWORD,
        use_listings_cache=False,
    )
    if kind == "s3":
        return str(path), path
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    if kind == "connection":
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_connection(s3))
        return str(path), path
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", s3_connection(s3))
    return str(path).replace("s3://", "s3://other@"), path
