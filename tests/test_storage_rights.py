"""The rights on S3 that a deployment needs: those of the docs, each of them, and no other.

The server is moto's, which checks signatures, and the policy of the user whose key it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import pytest

from include.batch.chunks import Chunk, write_chunks
from include.batch.rows import Result, Row
from include.common.storage import read_artifact, storage_path, write_artifact
from include.common.stored_files import new_artifact
from include.rag.documents import listed_documents, read_document
from include.rag.stores.open import open_vector_store
from tests.conftest import PROJECT
from tests.storages import BUCKET, REGION
from tests.stores import chunks

pytestmark = pytest.mark.one_stack

DOC = PROJECT / "docs" / "deploying-to-astronomer.md"
(BLOCK,) = re.findall(r"```json\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
STATEMENTS = json.loads(BLOCK)["Statement"]
RIGHTS = [
    right for each in STATEMENTS for right in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
]


def policy(without: str = "") -> dict[str, Any]:
    """The policy of the docs without one right, as Amazon reads it; moto differs in the last two statements."""
    statements = [
        {**each, "Action": [right for right in RIGHTS if right in each["Action"] and right != without]}
        for each in STATEMENTS
    ]
    bucket = f"arn:aws:s3:::{BUCKET}"
    if without != "s3:ListBucket":  # which HEAD of a bucket takes; moto asks for a right that Amazon does not have
        statements.append({"Effect": "Allow", "Action": ["s3:HeadBucket"], "Resource": bucket})
    if without != "s3:DeleteObject":  # to delete several objects at once, moto asks for the right on the bucket
        statements.append({"Effect": "Allow", "Action": ["s3:DeleteObject"], "Resource": bucket})
    return {"Version": "2012-10-17", "Statement": [each for each in statements if each["Action"]]}


@pytest.fixture
def with_rights(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Let `aws_default` be a user with this policy and no other right. The environment holds no key any more."""
    import boto3
    from airflow.sdk.io import store
    from moto import settings
    from moto.core.authorization import ActionAuthenticatorMixin

    iam = boto3.client("iam", endpoint_url=s3.meta.endpoint_url, region_name="us-east-1")
    prefix = uuid4().hex

    def apply(document: dict[str, Any]) -> None:
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
        name = uuid4().hex
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=json.dumps(document))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        where = {"endpoint_url": s3.meta.endpoint_url, "region_name": REGION}
        login = {"login": key["AccessKeyId"], "password": key["SecretAccessKey"]}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", **login, "extra": where}))
        options = {
            "endpoint": s3.meta.endpoint_url,
            "region": REGION,
            "allow_http": "true",
            "aws_access_key_id": login["login"],
            "aws_secret_access_key": login["password"],
        }
        lance = {"conn_type": "lancedb", "host": f"s3://{BUCKET}/{prefix}/lancedb", "extra": options}
        monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", json.dumps(lance))
        monkeypatch.setenv("GENAI_STORAGE", f"s3://{BUCKET}/{prefix}")
        monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", f"s3://{BUCKET}/{prefix}/handbook")
        monkeypatch.setattr(store, "_STORE_CACHE", {})
        monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)

    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    return apply


def artifacts() -> None:
    path = storage_path("a.json")
    with pytest.raises(FileNotFoundError):
        read_artifact(path)
    write_artifact(path, "{}")
    assert read_artifact(path) == b"{}"
    assert [each.name for each in storage_path().iterdir() if each.is_file()] == ["a.json"]


def a_large_file_that_fails() -> None:
    def fails() -> None:
        with new_artifact(storage_path("large.jsonl")) as file:
            file.write(b"x" * 60_000_000)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with pytest.raises(FileNotFoundError):
        read_artifact(storage_path("large.jsonl"))


def a_batch() -> None:
    ((name, _),) = write_chunks([Row(1, "a", "Text.")], "", storage_path("batch"), 1)
    chunk = Chunk(storage_path("batch") / name)
    assert chunk.so_far() == ([], False)
    asyncio.run(chunk.note(Result(1, "a", {"label": "x"}, calls=1)))
    chunk.complete(chunk.rows())
    assert chunk.so_far()[1]
    assert [each.name for each in chunk.folder.iterdir()] == ["results.jsonl", "rows.jsonl"]


def documents() -> None:
    write_artifact(storage_path("handbook", "a.md"), "# A")
    assert list(listed_documents()) == ["a.md"]
    assert read_document("a.md").title == "A"


def vectors() -> None:
    with open_vector_store() as store:
        collection = store.collection("Docs")
        collection.create(2)
        for text in ("old", "new"):
            collection.replace_documents(chunks("a.md", text), [[1.0, 0.0]])
        collection.delete_documents(["a.md"])
        collection.optimize()
        assert collection.count() == 0
        store.activate("Alias", "Docs")
        store.activate("Alias", "Others")


@contextmanager
def xcoms_at(url: str) -> Iterator[Any]:
    from airflow.providers.common.io.xcom import backend

    cached = [backend._get_base_path, backend._get_compression, backend._get_threshold]
    with pytest.MonkeyPatch.context() as patch, ExitStack() as after:
        for name, value in {"PATH": url, "THRESHOLD": "1000", "COMPRESSION": "gzip"}.items():
            patch.setenv(f"AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_{name}", value)
        for each in cached:
            each.cache_clear()
            after.callback(each.cache_clear)
        yield backend.XComObjectStorageBackend


def xcoms() -> None:
    with xcoms_at(f"{storage_path()}/xcom") as backend:
        stored = backend.serialize_value("x" * 5000, key="k", task_id="t", dag_id="d", run_id="r")
        xcom = type("Stored", (), {"value": stored})()
        assert backend.deserialize_value(xcom) == "x" * 5000
        xcom.value = json.loads(stored) if stored.startswith('"') else stored
        backend.purge(xcom)


USES = (artifacts, a_large_file_that_fails, a_batch, documents, vectors, xcoms)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_with_the_rights_of_the_docs_all_works(with_rights, use):
    with_rights(policy())
    use()


@pytest.mark.parametrize("right", RIGHTS)
def test_each_right_of_the_docs_is_needed(with_rights, right):
    with_rights(policy(without=right))
    refused = []
    for use in USES:
        try:
            use()
        except (Exception, pytest.fail.Exception) as error:
            refused.append((use.__name__, error))
    assert refused, "without it, all works: it is not needed"


def test_a_misspelt_bucket_is_an_error_that_names_it_and_is_not_created(with_rights, s3, monkeypatch):
    with_rights(policy())
    monkeypatch.setenv("GENAI_STORAGE", "s3://your-bukcet/genai")
    with pytest.raises(OSError, match=r"s3://aws_default@your-bukcet/genai/a\.json: .*GENAI_STORAGE"):
        write_artifact(storage_path("a.json"), "{}")
    with xcoms_at("s3://aws_default@your-bukcet/xcom") as backend, pytest.raises(OSError, match="Forbidden"):
        backend.serialize_value("x" * 5000, key="k", task_id="t", dag_id="d", run_id="r")
    store = json.loads(os.environ["AIRFLOW_CONN_VECTOR_STORE_DEFAULT"]) | {"host": "s3://your-bukcet/lancedb"}
    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", json.dumps(store))
    with pytest.raises(Exception, match="your-bukcet"):
        vectors()
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
    assert "your-bukcet" not in [each["Name"] for each in s3.list_buckets()["Buckets"]]
