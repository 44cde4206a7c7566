"""`docker-compose.override.yml`: what `astro dev start` runs beside Airflow. No Docker is needed to read it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker-compose.override.yml"

pytestmark = [
    pytest.mark.one_stack,
    pytest.mark.skipif(not FILE.exists(), reason="inside the image, which has no use for the files that start it"),
]

# Variables of the shell, each with a default.
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+):-([^}]*)\}")

# What the Astro CLI's own compose file starts (airflow/include/airflow3/composeyml.go.tmpl), and its ports here.
ASTRO_SERVICES = {"postgres", "db-migration", "scheduler", "dag-processor", "api-server", "triggerer"}
ASTRO_PORTS = {"5432", "8080"}
ENDS_BY_ITSELF = {"kafka-topics"}


def text(optional: bool, **shell: str) -> str:
    """The file, with what it keeps commented out for those who want it, as compose reads it in that shell."""
    found = FILE.read_text(encoding="utf-8")
    found = re.sub(r"^  # (?=ollama|  )", "  ", found, flags=re.MULTILINE) if optional else found
    return VARIABLE.sub(lambda each: shell.get(each[1]) or each[2], found)


@pytest.fixture(params=[False, True], ids=["as it is", "with the optional parts"])
def compose(request: pytest.FixtureRequest) -> Any:
    return yaml.safe_load(text(request.param))


@pytest.fixture
def services(compose: Any) -> dict[str, dict[str, Any]]:
    """The services that this project adds."""
    return {name: service for name, service in compose["services"].items() if name not in ASTRO_SERVICES}


@pytest.fixture
def kafka_topics() -> dict[str, Any]:
    return yaml.safe_load(text(False))["services"]["kafka-topics"]


@pytest.mark.parametrize("optional", [False, True])
def test_it_is_valid_by_the_compose_specification(optional):
    from compose_spec import PyCompose

    parsed = PyCompose.from_yaml(text(optional))
    assert ("ollama" in parsed.service_names()) is optional


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("restart:", "restrat:"), ("mem_limit: 1g", "mem_limit: lots"), ("interval: 10s", "interval: soon")],
)
def test_the_validator_would_find_a_mistake(right, wrong):
    from compose_spec import PyCompose

    with pytest.raises(ValueError, match="services"):
        PyCompose.from_yaml(text(False).replace(right, wrong, 1))


def test_every_port_is_open_to_this_machine_only_and_free(services):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
    taken = [port.split(":")[1] for port in ports]
    assert len(taken) == len(set(taken))
    assert not ASTRO_PORTS & set(taken)


def test_every_port_can_be_moved_by_a_variable_so_that_two_projects_run_side_by_side():
    names = dict(VARIABLE.findall(re.sub(r"^  # ", "  ", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)))
    moved = yaml.safe_load(text(True, **{name: str(int(port) + 1000) for name, port in names.items()}))["services"]
    usual = yaml.safe_load(text(True))["services"]
    for name, service in usual.items():
        for port, other in zip(service.get("ports", []), moved[name].get("ports", []), strict=True):
            assert port.split(":")[1] != other.split(":")[1], f"{name}: {port} cannot be moved"
    for services in (usual, moved):
        outside = services["kafka"]["ports"][0].rsplit(":", 1)[0]
        assert f"OUTSIDE://{outside}" in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_every_service_is_on_airflows_network_and_starts_without_a_profile(services):
    for name, service in services.items():
        assert service["networks"] == ["airflow"], name
        assert "profiles" not in service, f"{name}: the Astro CLI enables no profile"


def test_no_service_is_mistaken_for_one_of_airflows_by_its_name(services):
    for name in services:
        assert not re.search("webserver|api-server|scheduler|triggerer|processor|postgres", name), name


def test_every_service_that_goes_on_has_a_health_check(services):
    for name, service in services.items():
        assert (name in ENDS_BY_ITSELF) or service["healthcheck"]["test"], name


def test_every_service_has_a_limit_on_its_memory(services):
    for name, service in services.items():
        assert re.fullmatch(r"\d+[gm]", service["mem_limit"]), name


def test_every_image_is_pinned_to_a_full_version(services):
    for name, service in services.items():
        assert re.search(r":\d+\.\d+\.\d+$", service["image"]), name


def test_every_named_volume_is_declared(compose, services):
    mounted = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert mounted == set(compose["volumes"])


def test_nothing_needs_a_key_or_another_setting_to_start():
    assert re.findall(r"(?<!\$)\$\{?[A-Za-z_]", text(True)) == [], "a variable without a default"
    assert "env_file" not in text(True)


def test_airflow_waits_for_no_service_of_this_file(compose):
    for name in ASTRO_SERVICES & set(compose["services"]):
        assert set(compose["services"][name]) == {"environment"}, name
    for name, service in compose["services"].items():
        assert isinstance(service.get("depends_on", []), list), f"{name}: its condition would hold up the start"


def test_kafka_tells_each_side_an_address_that_it_can_reach(services):
    kafka = services["kafka"]
    advertised = kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    published = kafka["ports"][0].rsplit(":", 1)[0]
    assert advertised == ["INSIDE://kafka:9092", f"OUTSIDE://{published}"]


def run_topics(service: dict[str, Any], tmp_path: Path, status: int) -> tuple[int, list[list[str]]]:
    """Run the service's own command, with a stand-in for Kafka's tool that notes its arguments and ends so."""
    tool = tmp_path / "kafka-topics.sh"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat > {tmp_path}/input\nexit {status}\n')
    tool.chmod(0o755)
    script = service["command"][0].replace("$$", "$").replace("/opt/kafka/bin/", f"{tmp_path}/")
    ended = subprocess.run([*service["entrypoint"], script], env={**os.environ, **service["environment"]}, timeout=600)
    return ended.returncode, [line.split() for line in (tmp_path / "calls").read_text().splitlines()]


def test_all_topics_are_made_at_the_start(kafka_topics, tmp_path):
    status, calls = run_topics(kafka_topics, tmp_path, 0)
    assert status == 0
    made = {call[call.index("--topic") + 1]: call[call.index("--partitions") + 1] for call in calls}
    assert made == dict(line.split() for line in kafka_topics["environment"]["TOPICS"].splitlines())
    for call in calls:
        assert "--if-not-exists" in call


def test_while_the_broker_does_not_answer_the_topics_are_tried_again(kafka_topics, tmp_path):
    status, calls = run_topics(kafka_topics, tmp_path, 1)
    assert status != 0
    assert len(calls) == 1
    assert kafka_topics["restart"] == "on-failure"


@pytest.mark.skipif(importlib.util.find_spec("include.messages.contract") is None, reason="no DAG listens to Kafka")
def test_they_are_the_topics_that_the_dags_use(kafka_topics):
    from include.messages import contract as kafka_messages

    named = {value for name, value in vars(kafka_messages).items() if name.isupper() and isinstance(value, str)}
    assert named == {line.split()[0] for line in kafka_topics["environment"]["TOPICS"].splitlines()}


def test_large_xcoms_are_kept_where_every_container_of_airflow_sees_them(compose):
    for name in ASTRO_SERVICES - {"postgres", "db-migration"}:
        environment = compose["services"][name]["environment"]
        assert environment["AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH"].startswith(
            "file:///usr/local/airflow/include/"  # the Astro CLI mounts include/ into each of them
        )


def test_the_ci_tests_on_the_weaviate_of_the_compose_file():
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]
    compose, ci = yaml.safe_load(text(False))["services"]["weaviate"], job["services"]["weaviate"]
    assert ci["image"] == compose["image"]
    assert ci["ports"] == compose["ports"]
    assert ci["env"].items() <= compose["environment"].items()
    assert job["env"]["WEAVIATE_API_KEY"] == compose["environment"]["AUTHENTICATION_APIKEY_ALLOWED_KEYS"]
    assert job["env"]["WEAVIATE_URL"] == f"http://{compose['ports'][0].rsplit(':', 1)[0]}"
