"""`fleet/`: the project on Kubernetes and on Celery. No Docker, and no cluster, is needed to read its files.

`airflow_chart.schema.json` is an excerpt of the official chart's values.schema.json (Apache-2.0) with what
fleet/values.yaml sets. AIRFLOW_CHART_SCHEMA names a file with the whole one.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.fleet import Fleet

ROOT = Path(__file__).resolve().parent.parent
FLEET = ROOT / "fleet"
EXCERPT = Path(__file__).with_name("airflow_chart.schema.json")
NO_CHART = (
    "NOT CHECKED AGAINST THE WHOLE CHART: set AIRFLOW_CHART_SCHEMA to a copy of "
    "https://github.com/apache/airflow/blob/main/chart/values.schema.json"
)

OF_PROVIDERS = {"celery", "common_io"}  # whose settings are not in Airflow's own list

pytestmark = [
    pytest.mark.one_stack,
    pytest.mark.skipif(not FLEET.exists(), reason="inside the image, which has no use for the files that start it"),
]


def compose_text() -> str:
    text = (FLEET / "docker-compose.yml").read_text(encoding="utf-8")
    merged = yaml.safe_load(re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text))  # the validator knows no merge keys
    return yaml.safe_dump(merged)


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(compose_text())["services"])


@pytest.fixture
def values() -> dict[str, Any]:
    return dict(yaml.safe_load((FLEET / "values.yaml").read_text(encoding="utf-8")))


def mistakes(values: dict[str, Any], schema: Path) -> list[str]:
    import jsonschema

    validator = jsonschema.Draft7Validator(json.loads(schema.read_text(encoding="utf-8")))
    return [error.message for error in validator.iter_errors(values)]


def test_the_fleet_of_compose_is_valid_by_the_compose_specification():
    from compose_spec import PyCompose

    assert {"postgres", "redis", "worker-1", "worker-2"} <= set(PyCompose.from_yaml(compose_text()).service_names())
    with pytest.raises(ValueError, match="services"):
        PyCompose.from_yaml(compose_text().replace("restart: unless-stopped", "restrat: unless-stopped", 1))


def test_every_port_is_open_to_this_machine_only_and_every_service_has_a_limit_on_its_memory(services):
    for name, service in services.items():
        assert re.fullmatch(r"\d+[gm]", service["mem_limit"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_every_image_is_pinned_or_built_here(services):
    for name, service in services.items():
        assert "build" in service or re.search(r":\d+\.\d+(\.\d+)?$", service["image"]), name


def test_every_part_of_airflow_waits_for_the_database_and_has_the_same_settings(services):
    parts = {name: service for name, service in services.items() if "build" in service}
    settings = {json.dumps(service["environment"], sort_keys=True) for service in parts.values()}
    assert len(settings) == 1
    for name, service in parts.items():
        assert set(service["depends_on"]) == ({"postgres", "redis"} if name == "prepare" else {"prepare"}), name


def test_the_settings_are_those_that_airflow_has(services, values):
    from airflow.configuration import conf

    names = [*services["scheduler"]["environment"], *[each["name"] for each in values["env"]]]
    names += [
        f"AIRFLOW__{part.upper()}__{name.upper()}" for part in values["config"] for name in values["config"][part]
    ]
    for name in names:
        if found := re.fullmatch(r"AIRFLOW__([A-Z_]+?)__([A-Z_]+)", name):
            section, key = found[1].lower(), found[2].lower()
            if section not in OF_PROVIDERS:
                assert key in conf.configuration_description[section]["options"], name


def test_the_image_has_the_airflow_of_the_project(values):
    version = re.findall(r"^AIRFLOW := (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0]
    dockerfile = (FLEET / "Dockerfile").read_text(encoding="utf-8")
    assert f"FROM apache/airflow:{version}-python3.12\n" in dockerfile
    assert values["airflowVersion"] == version
    for name in re.findall(r"^COPY (?:--chown=\S+ )?(.+) /", dockerfile, re.MULTILINE):
        assert all((ROOT / each).exists() for each in name.split())
    settings = re.findall(r"^ENV AIRFLOW__.*", dockerfile, re.MULTILINE)
    assert settings == re.findall(r"^ENV AIRFLOW__.*", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_values_are_valid_by_the_charts_schema(values):
    assert mistakes(values, EXCERPT) == []
    assert mistakes({**values, "executer": "KubernetesExecutor"}, EXCERPT)
    assert mistakes({**values, "triggerer": {"replicas": "two"}}, EXCERPT)


def test_the_values_are_valid_by_the_whole_charts_schema(values):
    schema = os.environ.get("AIRFLOW_CHART_SCHEMA")
    if not schema:
        warnings.warn(NO_CHART, stacklevel=1)
        pytest.skip(NO_CHART)
    assert mistakes(values, Path(schema)) == []


def test_the_fleet_of_the_tests_needs_no_code_of_the_local_stack(tmp_path):
    fleet = Fleet(tmp_path, SimpleNamespace(bootstrap="127.0.0.1:1"), "postgresql+psycopg2://db", "redis://", {}, 1)

    assert not [value for value in fleet.environment("worker-1").values() if re.match(r"(local|tests)\.", value)]


def test_no_secret_stands_in_the_values(values):
    names = [each["name"] for each in values["env"]]
    assert not [name for name in names if name.startswith("AIRFLOW_CONN_") or "KEY" in name or "SECRET" in name]
    assert {"fernetKey", "jwtSecret", "apiSecretKey"}.isdisjoint(values)
    assert all("s3://" in each["value"] for each in values["env"] if each["name"].endswith(("PATH", "STORAGE", "BASE")))
