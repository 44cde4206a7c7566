"""Where the storage of tests can be: a folder, a bucket on a fake of Amazon S3, or the memory of this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

BUCKET = "your-bucket"
REGION = "eu-central-1"


def on_storage(*kinds: str) -> pytest.MarkDecorator:
    """Run a test with its storage on each of these: disk, s3 (by the environment), connection (S3, too), memory."""
    return pytest.mark.parametrize("storage", kinds, indirect=True)


def s3_client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the S3 API at `endpoint`, with a bucket; the environment and the connection lead there, too."""
    import boto3

    login, password = "the-id-of-a-key", "the-secret-of-a-key"
    for name, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": login,
        "AWS_SECRET_ACCESS_KEY": password,
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    extra = {"endpoint_url": endpoint, "region_name": REGION}
    connection = {"conn_type": "aws", "login": login, "password": password, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    client = boto3.client("s3", endpoint_url=endpoint)
    if BUCKET not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    return client


def new_storage(
    kind: str, request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Any]:
    """An empty storage: what GENAI_STORAGE is to be, and a path for the test to look at it by."""
    import fsspec
    from airflow.sdk.io import attach
    from upath import UPath

    prefix = uuid4().hex
    if kind == "memory":
        attach("memory", fs=fsspec.filesystem("memory"))
        return f"memory://{prefix}", UPath(f"memory://{prefix}")
    if kind == "disk":
        return f"file://{folder}", folder
    s3 = request.getfixturevalue("s3")
    path = UPath(f"s3://{BUCKET}/{prefix}", endpoint_url=s3.meta.endpoint_url, use_listings_cache=False)
    return str(path).replace("s3://", "s3://aws_default@") if kind == "connection" else str(path), path
