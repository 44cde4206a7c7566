"""Every DAG is attacked in every place where text from outside enters it: nothing of it is rendered as a template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KEY, chat_requests, dag_files
from tests.emulator import Emulator
from tests.hostile_world import ATTACKS, BAD_PARAMS, WITHOUT_TEXT, World
from tests.template_attack import ATTACK, RAN, Watch, left_behind, watching


def text_params(dag: Any) -> set[str]:
    """The params in which a person can write what they like."""
    schemas = {name: dag.params.get_param(name).schema for name in dag.params}
    fixed = {"integer", "number", "boolean", "null"}
    return {
        name
        for name, schema in schemas.items()
        if "enum" not in {**schema, **schema.get("items", {})}
        and schema.get("format") != "date"
        and not set([schema["type"]] if isinstance(schema["type"], str) else schema["type"]) <= fixed
    }


@pytest.fixture
def service(llm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    from local.openai_emulator import serve

    upstream = llm.env()["OPENAI_BASE_URL"]
    with serve(tmp_path / "emulator", upstream=upstream, job_seconds=0.3, token=KEY) as url:
        emulator = Emulator(url, KEY)
        monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", emulator.connection(model="gpt-4o-mini"))
        yield emulator


@pytest.fixture
def kafka(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The embedded broker, of this test's own."""
    from local.kafka_broker import broker_connection
    from tests.kafka import embedded_broker

    with embedded_broker(tmp_path) as broker:
        monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", broker_connection(broker.bootstrap))
        yield broker


@pytest.fixture
def world(llm: Any, storage: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(llm, storage, request, monkeypatch)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    folder = tmp_path / "working-folder"
    folder.mkdir()
    with watching(folder) as found:
        yield found


def test_every_dag_that_takes_text_from_outside_is_attacked():
    assert {attack.__name__ for attack in ATTACKS} | WITHOUT_TEXT == {path.stem for path in dag_files()}


@pytest.mark.parametrize("dag_id", sorted(WITHOUT_TEXT))
def test_a_dag_that_is_not_attacked_takes_no_text(load_dag, dag_id):
    assert text_params(load_dag(dag_id)) == set()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_text_from_outside_is_rendered(run_dag, load_dag, world, watch, logged, attack):
    dag_id = attack.__name__
    conf = attack(world)
    attacked = {name for name, value in conf.items() if RAN in json.dumps(value)}
    assert text_params(load_dag(dag_id)) <= attacked | BAD_PARAMS.get(dag_id, {}).keys()

    run = run_dag(dag_id, conf)
    left = left_behind(run, world.storage) + json.dumps(chat_requests(world.llm))
    log = logged()

    assert run.state == "success", log
    assert ATTACK in left or dag_id == "asset_or_time"  # which keeps nothing of what it reads
    watch.assert_nothing_was_rendered()
    assert KEY not in left + log


@pytest.mark.parametrize("dag_id", BAD_PARAMS)
def test_no_param_that_is_refused_is_rendered(run_dag, world, service, watch, logged, dag_id):
    run = run_dag(dag_id, BAD_PARAMS[dag_id])

    assert run.state == "failed"
    watch.assert_nothing_was_rendered()
    assert KEY not in left_behind(run, world.storage) + logged()
