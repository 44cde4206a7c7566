"""Each example of a provider in .env.example: it builds a client, which asks as that provider is asked.

A scripted server on 127.0.0.1 answers in the provider's form (see `tests.provider_server`). No live account was used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic_ai import Agent

from include.ai import connection
from include.ai.embeddings import Embedder
from include.ai.model import connection_model
from tests.conftest import PROJECT, model_connection
from tests.provider_server import ANSWER, INPUT_TOKENS, OUTPUT_TOKENS, ProviderServer, running

pytestmark = pytest.mark.one_stack

IN_PROCESS = "sentence-transformers:"  # tests/test_sentence_transformers.py asks that one

# By the start of `extra.model`: the URL that is asked, with an example's host, and the header that has the key.
OPENAI_FORM = ("/chat/completions", "Authorization", "Bearer your-key")
FORMS = {
    "openai-chat:": OPENAI_FORM,
    "azure:": OPENAI_FORM,
    "anthropic:": ("https://api.anthropic.com/v1/messages", "Authorization", "Bearer your-key"),
    "bedrock:": ("/model/global.anthropic.claude-haiku-5-5/converse-stream", "Authorization", "AWS4-HMAC-SHA256"),
    "google:": ("/models/gemini-3.8-flash:generateContent", "x-goog-api-key", "your-key"),
    "google-cloud:": (
        "https://europe-west1-aiplatform.googleapis.com/v1beta1/projects/your-project/locations/europe-west1/"
        "publishers/google/models/gemini-3.8-flash:generateContent",
        "Authorization",
        "Bearer google-access-token",
    ),
    "ollama:": ("/v1/chat/completions", "Authorization", "Bearer"),
    "openrouter:": ("https://openrouter.ai/api/v1/chat/completions", "Authorization", "Bearer your-key"),
    "litellm:": OPENAI_FORM,
    "vllm:": ("/v1/chat/completions", "Authorization", "Bearer"),
}


def examples(name: str) -> list[Any]:
    """The connections of .env.example that are named `name`, as they stand there."""
    lines = (PROJECT / ".env.example").read_text().splitlines()
    found = [line.partition("=")[2] for line in lines if line.startswith(f"#AIRFLOW_CONN_{name}=")]
    return [
        pytest.param(line, id=f"{number}: {json.loads(line)['extra']['model']}") for number, line in enumerate(found)
    ]


def service_account(tmp_path: Path, server: ProviderServer) -> dict[str, str]:
    """A Google service account whose token comes from the scripted server."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    names = {"project_id": "your-project", "private_key_id": "1", "client_email": "dag@your-project.example.com"}
    return {"type": "service_account", "private_key": pem, "token_uri": f"{server.url}/token", **names}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderServer]:
    """The scripted server, to which every request goes, with the identities that a worker may have by itself."""
    with running() as server:
        monkeypatch.setattr(connection, "ProviderClient", server.client)
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
        credentials = tmp_path / "service-account.json"
        credentials.write_text(json.dumps(service_account(tmp_path, server)))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials))
        monkeypatch.setenv("AIRFLOW_CONN_OTHER_MODEL", '{"conn_type": "pydanticai", "extra": {"model": "test"}}')
        yield server


@pytest.mark.parametrize("line", examples("PYDANTICAI_DEFAULT"))
def test_each_example_of_a_chat_model_asks_its_provider(server, monkeypatch, line):
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", line)
    fields = json.loads(line)
    run = Agent(connection_model("pydanticai_default")).run_sync("How are you?")

    assert run.output == ANSWER
    assert (run.usage.input_tokens, run.usage.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)
    (form,) = (form for start, form in FORMS.items() if fields["extra"]["model"].startswith(start))
    url, header, value = form
    (path, headers, body) = server.seen[-1]
    asked = server.asked[-1] if server.asked else f"{server.url}{path}"
    assert url in asked
    assert asked.startswith(fields.get("host", "http"))
    assert (headers[header] or f"Bearer {headers['api-key']}").startswith(value)  # Azure's older APIs
    assert "How are you?" in body
    assert ("api-version=2026-06-01" in asked) == ("api_version" in fields["extra"])


@pytest.mark.parametrize(
    "line", [param for param in examples("EMBEDDINGS_DEFAULT") if IN_PROCESS not in param.values[0]]
)
def test_each_example_of_an_embedding_model_asks_its_provider(server, monkeypatch, line):
    monkeypatch.setenv("AIRFLOW_CONN_EMBEDDINGS_DEFAULT", line)
    fields = json.loads(line)

    assert Embedder().embed_query("a word") == [0.5, 0.25]
    assert server.asked[-1].startswith(fields.get("host", "https://api.openai.com/v1"))
    assert server.seen[-1][0].endswith("/v1/embeddings")


def test_a_key_with_openai_base_url_asks_that_service(server, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "your-key")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://llm.example.com/v1")

    assert Agent(connection_model("pydanticai_default")).run_sync("How are you?").output == ANSWER
    assert Embedder().embed_query("a word") == [0.5, 0.25]
    assert server.asked == ["https://llm.example.com/v1/chat/completions", "https://llm.example.com/v1/embeddings"]


# What the forms of apache-airflow-providers-common-ai put into a connection

FORM_FIELDS = {
    "azure": {"host": "https://r.openai.azure.com", "extra": {"model": "azure:d", "api_version": "2026-06-01"}},
    "bedrock": {
        "extra": {
            "model": "bedrock:us.amazon.nova-lite-v1:0",
            "region_name": "us-east-1",
            "aws_access_key_id": "",
            "aws_secret_access_key": "",
            "aws_session_token": "",
            "profile_name": "",
            "api_key": "your-key",
            "base_url": "",
            "aws_read_timeout": 20,
            "aws_connect_timeout": 10,
        }
    },
    "vertex": {
        "extra": {
            "model": "google-cloud:gemini-3.8-flash",
            "project": "your-project",
            "location": "europe-west1",
            "vertexai": True,
            "api_key": "",
            "service_account_info": {},
            "base_url": "",
        }
    },
}


@pytest.mark.parametrize("kind", FORM_FIELDS)
def test_a_connection_made_for_common_ai_works(server, monkeypatch, tmp_path, kind):
    fields = FORM_FIELDS[kind]
    extra = {**fields["extra"], "fallback_conn_ids": [""]}
    if "service_account_info" in extra:
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
        extra["service_account_info"] = service_account(tmp_path, server)
    conn = {"conn_type": f"pydanticai_{kind}", "password": "your-key" if "host" in fields else None}
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps({**conn, **fields, "extra": extra}))

    assert Agent(connection_model("pydanticai_default")).run_sync("How are you?").output == ANSWER


@pytest.mark.parametrize("line", examples("PYDANTICAI_DEFAULT"))
def test_a_key_of_the_extra_that_a_provider_does_not_know_is_named_with_those_it_knows(server, monkeypatch, line):
    fields = json.loads(line)
    fields["extra"]["api_versoin"] = "2026-06-01"
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(fields))

    with pytest.raises(AirflowFailException, match="does not accept api_versoin") as error:
        _ = connection_model("pydanticai_default").models[0].wrapped
    known = re.search(r"may have (.*)\.$", str(error.value))[1].split(", ")
    assert {"api_key", "fallback_conn_ids", "usd_per_million_tokens"} <= {*known}
    assert set(fields["extra"]) - {"model", "api_versoin"} <= {*known}
    assert not [key for key in known if "client" in key]
    assert "your-key" not in str(error.value)


def test_a_host_where_the_provider_has_only_one_is_named(server, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection("https://elsewhere/v1", "openrouter:m"))

    with pytest.raises(AirflowFailException, match="the provider 'openrouter' does not accept host"):
        _ = connection_model("pydanticai_default").models[0].wrapped
