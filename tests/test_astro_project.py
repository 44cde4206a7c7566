"""The files that the Astro CLI and Docker read. Neither runs here: these tests read the files as they do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.environment import RUN_ID_PATTERN
from tests.fleet import CELERY_CONFIG, celery_config

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "docker-compose.override.yml").exists(),
    reason="inside the image, which has no use for the files that start it",
)

# The keys of the Astro CLI's settings/types.go. It ignores all others in silence.
CONNECTION_KEYS = {
    f"conn_{key}" for key in ("id", "type", "host", "schema", "login", "password", "port", "uri", "extra")
}
POOL_KEYS = {"pool_name", "pool_slot", "pool_description"}
VARIABLE_KEYS = {"variable_name", "variable_value"}


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def compose_services() -> dict[str, dict[str, Any]]:
    return read_yaml("docker-compose.override.yml")["services"]


def airflow_settings() -> dict[str, list[dict[str, Any]]]:
    return read_yaml("airflow_settings.yaml")["airflow"]


def example_settings() -> list[tuple[str, str]]:
    """Name and value of each setting of .env.example, whether commented out or not."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return [match.groups() for line in lines if (match := re.fullmatch(r"#?([A-Z][A-Z0-9_]*)=(.*)", line))]


def example_connections() -> list[tuple[str, str]]:
    return [(name, value) for name, value in example_settings() if name.startswith("AIRFLOW_CONN_")]


# The image of this project, and the one that it can move to.
both_images = pytest.mark.parametrize("folder", [".", "common-ai"])


def requirements(folder: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / folder / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line]


def test_airflow_settings_have_only_keys_that_the_astro_cli_reads() -> None:
    known = {"connections": CONNECTION_KEYS, "pools": POOL_KEYS, "variables": VARIABLE_KEYS}
    assert set(read_yaml("airflow_settings.yaml")) == {"airflow"}
    assert set(airflow_settings()) <= set(known)
    for section, entries in airflow_settings().items():
        for entry in entries:
            assert set(entry) <= known[section], entry


def test_the_pool_of_the_settings_is_the_one_that_model_calls_use() -> None:
    from include.common.task_defaults import LLM_POOL

    (pool,) = airflow_settings()["pools"]
    assert pool["pool_name"] == LLM_POOL == "llm_pool"
    assert pool["pool_slot"] > 0
    assert pool["pool_description"]


def test_the_kafka_connection_points_at_the_broker_of_the_compose_file() -> None:
    (kafka,) = (conn for conn in airflow_settings()["connections"] if conn["conn_id"] == "kafka_default")
    extra = json.loads(kafka["conn_extra"])
    environment = compose_services()["kafka"]["environment"]
    assert f"INSIDE://{extra['bootstrap.servers']}" in environment["KAFKA_ADVERTISED_LISTENERS"].split(",")


def test_each_connection_of_the_env_example_is_one_that_airflow_reads() -> None:
    from airflow.models import Connection

    for name, value in example_connections():
        fields = json.loads(value)
        conn = Connection.from_json(value, conn_id=name)
        read = {key: getattr(conn, key) for key in ("conn_type", "host", "port", "login", "password")}
        assert {**read, "extra": conn.extra_dejson} == {**dict.fromkeys(read), "extra": {}, **fields}


def test_the_env_example_has_the_settings_of_this_project() -> None:
    assert {name for name, _ in example_settings()} == {
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "AIRFLOW_CONN_PYDANTICAI_DEFAULT",
        "AIRFLOW_CONN_OTHER_MODEL",
        "AIRFLOW_CONN_EMBEDDINGS_DEFAULT",
        "AIRFLOW_CONN_OPENAI_DEFAULT",
        "AIRFLOW_CONN_KAFKA_DEFAULT",
        "GENAI_SQS_QUEUE",
        "AIRFLOW_CONN_AWS_DEFAULT",
        "AIRFLOW_CONN_VECTOR_STORE_DEFAULT",
        "GENAI_KNOWLEDGE_BASE",
        "GENAI_STORAGE",
        "GENAI_TRACED_ROWS",
        "GENAI_TRACE_URL",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION",
        "AIRFLOW__API__HOST",
        "AIRFLOW__CORE__PLUGINS_FOLDER",
    }


@both_images
def test_every_requirement_is_pinned_to_one_version(folder: str) -> None:
    for requirement in requirements(folder):
        if requirement == "sqlalchemy<2.1":
            continue  # the image's own: another exact version could contradict what Astro Runtime pins
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==\d[\w.]*", requirement), requirement


@both_images
def test_the_image_gets_the_versions_that_were_tested(folder: str) -> None:
    instructions = (ROOT / folder / "Dockerfile").read_text()
    assert "RUN pip install " in instructions
    assert " --constraint constraints.txt --requirement requirements.txt\n" in instructions
    assert instructions.index("USER root") < instructions.index("RUN pip") < instructions.index("USER astro")
    stack = "common-ai" if any("common-ai" in line for line in requirements(folder)) else "airflow-ai-sdk"
    lock = {line.removesuffix(" \\") for line in (ROOT / "local" / f"{stack}.lock").read_text().splitlines()}
    constraints = (ROOT / folder / "constraints.txt").read_text().splitlines()
    assert set(constraints) <= lock, "make lock"
    assert "constraints.txt" not in (ROOT / ".dockerignore").read_text()


@pytest.mark.parametrize("name", ["airflow-ai-sdk", "common-ai", "sentence-transformers"])
def test_the_lock_holds_the_hash_of_every_file_that_is_installed(name: str) -> None:
    lines = (ROOT / "local" / f"{name}.lock").read_text().splitlines()
    packages = [number for number, line in enumerate(lines) if not line.startswith((" ", "#"))]
    assert len(packages) > 10
    for number in packages:
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==[\w.+]+( ; [^;\\]+)? \\", lines[number]), lines[number]
        assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", lines[number + 1]), lines[number]


@both_images
def test_airflow_comes_with_the_image_and_only_one_ai_sdk_is_installed(folder: str) -> None:
    names = {re.split(r"[\[=]", requirement)[0] for requirement in requirements(folder)}
    assert not {"apache-airflow", "apache-airflow-core"} & names
    assert len({"airflow-ai-sdk", "apache-airflow-providers-common-ai"} & names) == 1


@both_images
def test_the_dockerfile_pins_the_runtime_and_its_python(folder: str) -> None:
    lines = (ROOT / folder / "Dockerfile").read_text().splitlines()
    (base,) = (line for line in lines if line.startswith("FROM "))
    assert re.fullmatch(r"FROM astrocrpublic\.azurecr\.io/runtime:\d+\.\d+-\d+-python-3\.\d+", base)


@both_images
def test_the_image_allows_the_same_run_ids_as_the_local_stack(folder: str) -> None:
    setting = f"ENV AIRFLOW__SCHEDULER__ALLOWED_RUN_ID_PATTERN='{RUN_ID_PATTERN}'"
    assert setting in (ROOT / folder / "Dockerfile").read_text().splitlines()


WORKER_STARTS = """
import sys, threading
from airflow.providers.celery.executors.celery_executor_utils import app
app.loader.import_default_modules()
print([name for name in app.conf.imports if name in sys.modules], threading.active_count())
"""


def test_a_celery_worker_imports_what_tasks_need_before_it_forks_them_and_no_thread_is_lost() -> None:
    setting = celery_config()
    assert f"ENV {CELERY_CONFIG}='{setting}'" in (ROOT / "common-ai" / "Dockerfile").read_text().splitlines()
    started = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKER_STARTS],
        env={**os.environ, CELERY_CONFIG: setting},
        capture_output=True,
        text=True,
        timeout=600,
    )
    modules = json.loads(setting)["imports"]
    assert started.stdout.endswith(f"{modules} 1\n"), started.stdout + started.stderr


def test_secrets_and_local_data_stay_out_of_git_and_of_the_image() -> None:
    for name in (".gitignore", ".dockerignore"):
        ignored = {line.strip().rstrip("/") for line in (ROOT / name).read_text().splitlines()}
        assert {".env", ".venv*", ".local", ".astro/standalone", "include/.data"} <= ignored, name
        # What `astro dev object export`, `astro config set` and the Astro CLI 2 leave behind.
        assert {"tmp.connections", "tmp.var", ".astro/config.yaml.lock", ".astro/*.local.yaml"} <= ignored, name


def test_the_airflow_settings_are_committed() -> None:
    assert "airflow_settings" not in (ROOT / ".gitignore").read_text()


def test_the_script_of_the_ci_needs_no_executable_bit() -> None:
    steps = read_yaml(".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == "bash .ci/run"


def deploy_doc() -> str:
    return (ROOT / "docs" / "deploying-to-astronomer.md").read_text()


def test_a_deploy_parses_and_tests_first_and_runs_code_that_cannot_change() -> None:
    workflow = read_yaml(".github/workflows/deploy.yml")
    (step,) = workflow["jobs"]["deploy"]["steps"]
    assert re.fullmatch(r"astronomer/deploy-action@[0-9a-f]{40}", step["uses"])
    assert (step["with"]["parse"], step["with"]["pytest"]) == (True, True)
    assert step["with"]["deploy-type"] == "infer"
    assert workflow[True]["push"]["branches"] == ["main"]  # YAML reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    assert not workflow["concurrency"]["cancel-in-progress"]


def test_a_deploy_waits_for_the_ci_of_its_commit() -> None:
    jobs = read_yaml(".github/workflows/deploy.yml")["jobs"]
    assert jobs["deploy"]["needs"] == "tested"
    (step,) = jobs["tested"]["steps"]
    assert '--workflow ci.yml --commit "$GITHUB_SHA"' in step["run"]
    assert "gh run watch" in step["run"]
    assert "--exit-status" in step["run"]


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda file: file.name)
def test_a_workflow_runs_actions_of_one_commit_and_may_write_nothing(file: Path) -> None:
    workflow = read_yaml(str(file.relative_to(ROOT)))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert set(job.get("permissions", {}).values()) <= {"read"}
        assert job["timeout-minutes"]
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}")), step


@pytest.mark.one_stack
def test_what_a_workflow_runs_is_there() -> None:
    runs = [
        step["run"]
        for file in (ROOT / ".github" / "workflows").glob("*.yml")
        for job in yaml.safe_load(file.read_text())["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    said = "\n".join(runs)
    targets = re.findall(r"^ *make (\S+)", said, re.MULTILINE)
    modules = re.findall(r"-m ((?:local|tests)[\w.]*)", said)
    scripts = re.findall(r"^ *bash (\S+)", said, re.MULTILINE)
    assert targets
    assert modules
    assert scripts
    for target in targets:
        planned = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert planned.returncode == 0, planned.stderr
    for path in [*(f"{module.replace('.', '/')}.py" for module in modules), *scripts]:
        assert (ROOT / path).exists(), path


@pytest.mark.one_stack
def test_the_evaluation_of_a_pull_request_gives_options_and_subjects_that_there_are() -> None:
    from include.sample.evaluation import CASES
    from include.subjects import subjects
    from local.evaluate import parsed

    job = read_yaml(".github/workflows/evaluate.yml")["jobs"]["evaluate"]
    said = "\n".join(step.get("run", "") for step in job["steps"])
    commands = re.findall(r"-m local\.evaluate (.*?)(?: \\| \|\||$)", said, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        given = command.replace('"$SUBJECTS"', job["env"]["SUBJECTS"]).replace(
            '"$BUDGET_USD"', job["env"]["BUDGET_USD"]
        )
        options = parsed(given.split())
        assert set(options.subjects.split(",")) <= {subject.name for subject in subjects(CASES)}
        assert options.budget == 1


def test_the_packages_of_both_locks_are_looked_up_for_vulnerabilities_each_week() -> None:
    workflow = read_yaml(".github/workflows/audit.yml")
    assert workflow[True]["schedule"][0]["cron"].endswith("* * 2")  # YAML reads `on` as true
    job = workflow["jobs"]["packages"]
    assert [f"local/{stack}.lock" for stack in job["strategy"]["matrix"]["stack"]] == [
        "local/airflow-ai-sdk.lock",
        "local/common-ai.lock",
    ]
    assert any("pip-audit --requirement local/${{ matrix.stack }}.lock" in step.get("run", "") for step in job["steps"])


@pytest.mark.parametrize("name", [".gitignore", ".dockerignore"])
def test_no_file_of_settings_is_committed_or_put_into_the_image(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert {".env", ".env.*"} <= set(lines)
    assert ("!.env.example" in lines) == (name == ".gitignore")


def test_a_deploy_without_its_settings_does_nothing_and_the_docs_name_them() -> None:
    text = (ROOT / ".github" / "workflows" / "deploy.yml").read_text()
    settings = set(re.findall(r"(?:secrets|vars)\.(\w+)", text))
    assert settings == {"ASTRO_API_TOKEN", "ASTRO_DEPLOYMENT_ID"}
    assert "if: vars.ASTRO_DEPLOYMENT_ID != ''" in text
    for name in settings:
        assert f"`{name}`" in deploy_doc()


def test_the_files_that_standalone_mode_is_given_by_hand_are_those_of_the_dockerfiles_build() -> None:
    images = [(ROOT / folder / "Dockerfile").read_text() for folder in (".", "common-ai")]
    builds = re.findall(r"/(?:constraints|freeze)-(\S+)\.txt", deploy_doc())
    assert len(set(builds)) == 1
    assert images[0] == images[1] or f"runtime:{builds[0]}\n" in images[0]


def test_each_connection_of_the_deployment_docs_is_one_that_airflow_reads() -> None:
    from airflow.models import Connection

    found = re.findall(r"^AIRFLOW_CONN_(\w+)=(\{.*)$", deploy_doc(), re.MULTILINE)
    assert len(found) >= 3
    for name, value in found:
        assert Connection.from_json(value, conn_id=name.lower()).conn_type == json.loads(value)["conn_type"]


def test_the_models_of_standalone_mode_are_those_that_the_embedded_server_has() -> None:
    from local.environment import CHAT_MODEL, EMBEDDING_MODEL

    assert f'"openai-chat:{CHAT_MODEL}"' in deploy_doc()
    assert f'"openai:{EMBEDDING_MODEL}"' in deploy_doc()
