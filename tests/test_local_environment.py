"""Which model the local stack uses, and where it listens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from local import environment, paid
from local.environment import airflow_environment, uses_embedded_model
from local.processes import StackError
from local.stack import Stack

pytestmark = pytest.mark.one_stack

MODEL_URL = "http://127.0.0.1:7777/v1"
OWN_MODEL = '{"conn_type": "pydanticai", "host": "http://127.0.0.1:11434/v1", "extra": {"model": "ollama:qwen3"}}'


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder without the developer's own `.env`."""
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    return tmp_path


def variables(tmp_path: Path) -> dict[str, str]:
    openai_url, queue = "http://127.0.0.1:7778/v1", "http://127.0.0.1:7780/123456789012/requests"
    return airflow_environment(tmp_path / "home", 8080, MODEL_URL, openai_url, "127.0.0.1:7779", queue, (1, 2))


def test_with_nothing_set_every_connection_is_an_embedded_part(tmp_path):
    found = variables(tmp_path)
    for name in ("AIRFLOW_CONN_PYDANTICAI_DEFAULT", "AIRFLOW_CONN_EMBEDDINGS_DEFAULT"):
        assert json.loads(found[name])["host"] == MODEL_URL
    assert json.loads(found["AIRFLOW_CONN_VECTOR_STORE_DEFAULT"])["host"].startswith(str(tmp_path))


def test_an_openai_key_alone_leaves_both_models_to_openai(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-something")
    found = variables(tmp_path)
    assert "AIRFLOW_CONN_PYDANTICAI_DEFAULT" not in found
    assert "AIRFLOW_CONN_EMBEDDINGS_DEFAULT" not in found
    assert not uses_embedded_model(environment.user_environment())


@pytest.mark.parametrize("where", ["shell", "file"])
def test_the_demo_uses_a_key_only_if_it_is_asked_to(tmp_path, project, monkeypatch, where):
    if where == "shell":
        monkeypatch.setenv("OPENAI_API_KEY", "sk-something")
    else:
        monkeypatch.setenv("OPENAI_API_KEY", "")
        monkeypatch.delenv("OPENAI_API_KEY")  # restored to what it was before the test
        (project / ".env").write_text("OPENAI_API_KEY=sk-something\n")
    assert paid.has_key_alone()

    paid.use_embedded_model()
    assert not paid.has_key_alone()
    found = variables(tmp_path)
    for name in ("AIRFLOW_CONN_PYDANTICAI_DEFAULT", "AIRFLOW_CONN_EMBEDDINGS_DEFAULT"):
        assert json.loads(found[name])["host"] == MODEL_URL
    assert not found["OPENAI_API_KEY"]


def test_a_connection_is_a_model_that_was_asked_for(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-something")
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", OWN_MODEL)
    assert not paid.has_key_alone()


def test_what_a_paid_demo_may_cost_is_said_before_it_starts(monkeypatch):
    assert paid.cost_notice(1.0) is None
    monkeypatch.setenv("OPENAI_API_KEY", "sk-something")
    whole, half = (float(paid.cost_notice(share).split("$")[1].split()[0]) for share in (1.0, 0.5))
    assert "gpt-6-luna" in paid.cost_notice(1.0)
    assert 0 < half < whole
    for connection in (OWN_MODEL, "not JSON", '{"conn_type": "pydanticai", "extra": "not JSON"}', "[]"):
        monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", connection)
        assert "not known" in paid.cost_notice(1.0)


def test_the_demo_prices_the_model_that_a_key_alone_calls():
    from include.ai.model import DEFAULT_MODEL

    assert paid.DEFAULT_MODEL == DEFAULT_MODEL


def test_a_connection_in_the_env_file_replaces_the_embedded_model(tmp_path, project):
    (project / ".env").write_text(f"AIRFLOW_CONN_PYDANTICAI_DEFAULT={OWN_MODEL}\n")
    found = variables(tmp_path)
    assert json.loads(found["AIRFLOW_CONN_PYDANTICAI_DEFAULT"]) == json.loads(OWN_MODEL)
    assert json.loads(found["AIRFLOW_CONN_EMBEDDINGS_DEFAULT"])["host"] == MODEL_URL


def test_the_shell_wins_over_the_env_file(project, monkeypatch):
    (project / ".env").write_text("OPENAI_API_KEY=from-the-file\n")
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-shell")
    assert environment.user_environment()["OPENAI_API_KEY"] == "from-the-shell"


def test_everything_listens_on_this_machine_only(tmp_path):
    found = variables(tmp_path)
    assert found["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert found["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8080/execution/"


@pytest.mark.parametrize("name", ["a b", "Größe", "c++", "c#", "[x]"])
def test_folders_are_named_as_they_are(tmp_path, name):
    found = variables(tmp_path / name)
    assert found["GENAI_STORAGE"] == f"file://{tmp_path}/{name}/home/artifacts"
    assert found["AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH"] == f"file://{tmp_path}/{name}/home/xcom"


@pytest.mark.parametrize("name", ["100%", "$HOME", "what?", "a:b"])
def test_a_folder_that_airflows_settings_cannot_hold_is_named_before_anything_starts(tmp_path, name):
    with pytest.raises(StackError, match="cannot hold the character"):
        Stack(tmp_path / name).start(print)
    assert not (tmp_path / name).exists()


def test_messages_come_from_the_fake_of_sqs_unless_a_setting_leads_to_aws(tmp_path, monkeypatch):
    found = variables(tmp_path)
    extra = json.loads(found["AIRFLOW_CONN_AWS_DEFAULT"])["extra"]
    assert found["GENAI_SQS_QUEUE"].startswith(extra["service_config"]["sqs"]["endpoint_url"])
    assert "endpoint_url" not in extra  # S3 and the others stay with AWS

    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", '{"conn_type": "aws"}')
    assert "GENAI_SQS_QUEUE" not in variables(tmp_path)
