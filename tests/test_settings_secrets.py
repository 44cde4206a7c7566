"""No secret gets into airflow_settings.yaml, which Git tracks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from local.settings_secrets import secrets_in
from tests.conftest import PROJECT

pytestmark = pytest.mark.one_stack

SECRET = "s3cr3t-of-the-test"


def settings(**connection: object) -> dict[str, object]:
    return {"airflow": {"connections": [{"conn_id": "mine", "conn_type": "http", **connection}]}}


def check(text: str, tmp_path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "settings.yaml").write_text(text)
    command = [sys.executable, "-m", "local.settings_secrets", str(tmp_path / "settings.yaml")]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


# As `astro dev object export` writes them: the extra as text, or as a mapping whose keys are lower-cased.
@pytest.mark.parametrize(
    "connection",
    [
        {"conn_password": SECRET},
        {"conn_uri": f"http://me:{SECRET}@example.com/"},
        {"conn_host": f"https://me:{SECRET}@example.com"},
        {"conn_extra": json.dumps({"sasl.password": SECRET})},
        {"conn_extra": {"aws_secret_access_key": SECRET}},
        {"conn_extra": {"headers": {"Authorization": f"Bearer {SECRET}"}}},
        {"conn_extra": json.dumps({"service_account_info": {"private_key": SECRET}})},
        {"conn_extra": json.dumps({"proxies": [f"http://me:{SECRET}@proxy"]})},
    ],
)
def test_a_secret_is_refused_with_its_connection_and_field_and_not_shown(connection, tmp_path):
    ended = check(yaml.safe_dump(settings(**connection)), tmp_path)
    assert ended.returncode == 1
    assert "connection mine, " + next(iter(connection)) in ended.stderr
    assert SECRET not in ended.stderr


def test_a_secret_variable_is_refused(tmp_path):
    text = yaml.safe_dump({"airflow": {"variables": [{"variable_name": "api_token", "variable_value": SECRET}]}})
    assert "variable api_token" in check(text, tmp_path).stderr


@pytest.mark.parametrize("text", ["", "airflow:\n", "airflow: {connections: }", "airflow: {pools: [{pool_name: p}]}"])
def test_what_holds_none_passes(text, tmp_path):
    assert check(text, tmp_path).returncode == 0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(alphabet="abc {}:/@%", max_size=12),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
        max_leaves=6,
    ),
    st.sampled_from(["password", "clientSecret", "ACCESS_TOKEN", "api_key", "apikey", "private-key"]),
)
def test_a_secret_is_found_however_deep_it_stands(around, name):
    extra = {"a": [around, {"b": {name.replace("-", "_"): SECRET}}]}
    for written in (extra, json.dumps(extra)):
        assert any(name.replace("-", "_") in found for found in secrets_in(settings(conn_extra=written)))


@pytest.mark.skipif(not (PROJECT / "airflow_settings.yaml").exists(), reason="inside the image")
def test_the_projects_own_settings_hold_none_and_make_lint_looks():
    assert list(secrets_in(yaml.safe_load((PROJECT / "airflow_settings.yaml").read_text()))) == []
    planned = subprocess.run(
        ["make", "--dry-run", "lint"], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout
    assert "-m local.settings_secrets" in planned
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert any(hook["entry"] == "make lint" and "yaml" in hook["types_or"] for hook in hooks)
