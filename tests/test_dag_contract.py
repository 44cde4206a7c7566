"""What holds for every DAG of the template: cheap and safe to parse, documented, with the project's defaults."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT, dag_files, parse

HEAVY_MODULES = [
    "openai",
    "weaviate",
    "lancedb",
    "opentelemetry.exporter",
    "sentence_transformers",
    "pandas",
    "pyarrow",
    "torch",
    "matplotlib",
]

# Runs in a process of its own: no network, no database, no key, no connection, no reading of the project's data.
PARSE_ALL = """
import json, runpy, sys

project, heavy, files = json.loads(sys.argv[1])

def forbid(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"network at parse time: {args}")
    if event == "open" and isinstance(args[0], str) and args[0].startswith(project):
        if not args[0].endswith((".py", ".pyc")) and "__pycache__" not in args[0]:
            raise RuntimeError(f"file read at parse time: {args[0]}")

sys.addaudithook(forbid)
errors = {}
for file in files:
    try:
        runpy.run_path(file)
    except BaseException as error:
        errors[file] = repr(error)
print(json.dumps({"errors": errors, "heavy": [name for name in heavy if name in sys.modules]}))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    keep = ("PATH", "LANG", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    environment |= {
        "AIRFLOW_HOME": str(tmp_path_factory.mktemp("empty-airflow-home")),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////nonexistent/airflow.db",
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    argument = json.dumps([str(PROJECT / "include"), HEAVY_MODULES, [str(path) for path in dag_files()]])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARSE_ALL, argument],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_every_dag_file_is_parsed_without_network_key_connection_or_data_file(parsed):
    assert parsed["errors"] == {}


def test_no_dag_file_imports_a_heavy_module(parsed):
    assert parsed["heavy"] == []


@pytest.fixture(scope="module")
def dags() -> dict[str, Any]:
    return {dag_id: dag for path in dag_files() for dag_id, dag in parse(path).dags.items()}


@pytest.fixture(params=dag_files(), ids=lambda path: path.stem)
def dag(request: pytest.FixtureRequest, dags: dict[str, Any]) -> Any:
    path: Path = request.param
    return dags[path.stem]  # which also holds that a DAG is named as its file


def setting(task: Any, name: str) -> Any:
    """An operator's setting, mapped or not."""
    return task.partial_kwargs.get(name) if task.is_mapped else getattr(task, name)


def calls_a_model(task: Any) -> bool:
    return task.task_type.lstrip("_") in (
        "LLMDecoratedOperator",
        "AgentDecoratedOperator",
        "LLMBranchDecoratedOperator",
    )


def test_a_dag_says_what_it_is_for(dag):
    assert dag.doc_md.strip().startswith("### ")
    assert len(dag.doc_md) > 200
    assert dag.description
    assert dag.dag_display_name == dag.dag_id, "the search of Airflow 3.1 sees only this name"
    assert "genai" in dag.tags
    assert dag.owner == "genai"


def test_the_text_of_a_dag_reads_well_in_airflows_ui(dag):
    """Airflow shows code within a line as a block, and no HTML. And the text comes along where the DAG is copied."""
    from markdown_it import MarkdownIt

    tokens = [child for token in MarkdownIt().parse(dag.doc_md) for child in (token, *(token.children or []))]
    kinds = {token.type for token in tokens}
    assert not kinds & {"code_inline", "html_inline", "html_block"}
    assert all(str(token.attrGet("href")).startswith("https://") for token in tokens if token.type == "link_open")
    assert not re.search(r"docs/|include/|local/|README", dag.doc_md)


def test_what_a_dag_writes_is_in_a_folder_of_its_name():
    for path in dag_files():
        folders = re.findall(r"artifact_path\(\"(\w+)\"", path.read_text())
        assert set(folders) <= {path.stem}, path


def test_a_dag_can_be_triggered_with_its_default_params(dag):
    dag.params.validate()


def test_each_param_has_a_title_a_description_and_a_type(dag):
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.description, name
        assert param.schema.get("title"), name
        assert "type" in param.schema or "enum" in param.schema, name


def parts_of(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema and those in it, with what `limits` added to each."""
    yield schema | {key: value for part in schema.get("allOf", []) for key, value in part.items()}
    for part in (schema.get("items"), *schema.get("properties", {}).values()):
        if part:
            yield from parts_of(part)


def test_a_param_takes_no_value_that_is_too_long_or_out_of_range(dag):
    for name in dag.params:
        for schema in parts_of(dag.params.get_param(name).schema):
            types = set(schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type")])
            bounds = {"string": ["maxLength"], "array": ["maxItems"], "integer": ["minimum", "maximum"]}
            bounds["number"] = bounds["integer"]
            for bound in [bound for kind in types & bounds.keys() for bound in bounds[kind]]:
                given = schema.keys() | {"minimum"} if "exclusiveMinimum" in schema else schema.keys()
                assert bound in given or {"enum", "const"} & {*schema, *schema.get("items", {})}, (name, bound)


def test_airflows_form_changes_no_value_in_silence(dag):
    """Which it does by the limits of a text's line and of a number, where these stand in the schema itself."""
    for name in dag.params:
        schema = dag.params.get_param(name).schema
        cut = {"minimum", "maximum"} | ({"maxLength"} if schema.get("format") != "multiline" else set())
        assert not cut & schema.keys(), f"{name}: **limits(...)"


@pytest.mark.needs_dags("map_chunks")
@pytest.mark.parametrize("rows", [-1, 100_001])
def test_a_value_beyond_its_limits_is_refused_by_name(rows, dags):
    from airflow.exceptions import ParamValidationError

    params = dags["map_chunks"].params
    with pytest.raises(ParamValidationError, match=f"rows.*{rows} is .* than the m..imum of"):
        params["rows"] = rows


def test_every_task_retries(dag):
    for task in dag.tasks:
        assert setting(task, "retries") >= 2, task.task_id


def test_every_task_ends(dag):
    """But for one that waits for a person, in the triggerer and for as long as its param says."""
    for task in dag.tasks:
        assert setting(task, "execution_timeout") or task.task_type in ("ReviewOperator", "AcceptOperator"), (
            task.task_id
        )


def test_prompts_and_answers_that_a_task_returns_stay_out_of_the_log(dag):
    from airflow.providers.standard.operators.python import PythonOperator

    for task in dag.tasks:
        if issubclass(task.operator_class, PythonOperator) and (calls_a_model(task) or not task.is_mapped):
            assert setting(task, "show_return_value_in_logs") is False, task.task_id


def test_tasks_that_call_a_model_have_a_pool_a_time_out_and_a_capped_back_off(dag):
    for task in filter(calls_a_model, dag.tasks):
        assert setting(task, "pool") == "llm_pool"
        assert setting(task, "retries") == 3
        assert setting(task, "retry_exponential_backoff")
        assert setting(task, "max_retry_delay").total_seconds() <= 300
        assert setting(task, "execution_timeout").total_seconds() <= 3600


def test_nothing_of_a_task_is_rendered_once_it_holds_text_from_outside(dag):
    from airflow.sdk.definitions._internal.expandinput import ListOfDictsExpandInput

    from include.common.templates import end_rendering, resolve_as_data

    assert ListOfDictsExpandInput.resolve is resolve_as_data
    assert dag.default_args["pre_execute"] is end_rendering  # so that the DAG's file has imported it
    for task in dag.tasks:
        hook = setting(task, "pre_execute" if task.is_mapped else "_pre_execute_hook")
        hook = getattr(hook, "func", hook)  # of a functools.partial
        assert hook is end_rendering or "end_rendering" in hook.__code__.co_names, task.task_id


def test_mapped_tasks_have_readable_names(dag):
    for task in dag.tasks:
        if task.is_mapped:
            assert setting(task, "map_index_template"), task.task_id


@pytest.mark.skipif(not (PROJECT / "airflow_settings.yaml").exists(), reason="not in the image")
def test_the_pool_of_the_defaults_is_the_one_that_is_created():
    import yaml

    from include.common.task_defaults import LLM_POOL

    settings = yaml.safe_load((PROJECT / "airflow_settings.yaml").read_text())
    assert LLM_POOL in [pool["pool_name"] for pool in settings["airflow"]["pools"]]
