"""`make copy`: what it copies, what it says, and what it refuses. test_copied_projects.py runs what was copied."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from include.ai import active_sdk
from local.copy import CopyError, needs
from local.copy.lines import code_lines, lines_of_include
from local.copy.needs import AIRFLOW_AI_SDK, COMMON_AI, SDKS, analyse, pins_by_sdk
from local.copy.put import KEPT, MANIFEST, NEW, UNCHANGED, UPDATED, Copied, copy
from local.copy.report import PAGE, TABLE, report, table_row
from tests.conftest import PROJECT, dag_files, template_dags

pytestmark = pytest.mark.one_stack
OURS = next(iter(pins_by_sdk()))
# Lines of code of include/ that a pattern may bring.
AT_MOST = {"prompt_chaining": 500, "rag_pipeline": 1700, "batch_api_inference": 2000}

DAGS = [path.stem for path in dag_files()]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return astro_project(tmp_path / "project")


def astro_project(folder: Path, image: str = "") -> Path:
    """An Astro project without a DAG, for the Airflow and SDK that the tests run with."""
    (folder / "dags").mkdir(parents=True)
    image = image or ("runtime:3.1-17" if active_sdk() == SDKS[AIRFLOW_AI_SDK] else "runtime:3.3-8")
    (folder / "Dockerfile").write_text(f"FROM astrocrpublic.azurecr.io/{image}\n")
    (folder / "requirements.txt").write_text("pandas==2.3.3  # of their own\n")
    return folder


def with_files(folder: Path, files: dict[str, str | bytes]) -> Path:
    """An Astro project with these files besides, or instead."""
    project = astro_project(folder / "project")
    for name, content in files.items():
        if any(f"{name}/".startswith("requirements.txt/") for name in files):
            (project / "requirements.txt").unlink(missing_ok=True)
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return project


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(project: Path, dag_id: str, said: str) -> None:
    before = snapshot(project)
    with pytest.raises(CopyError, match=said):
        copy(dag_id, project)
    assert snapshot(project) == before


def changeable(copied: Copied) -> Path:
    """A module that more than one pattern uses."""
    return next(path for path in copied.pattern.modules if path.name == "task_defaults.py")


def failing(method: Any, calls: Iterator[int], n: int) -> Any:
    """The method of Path, that finds the disk full at the n-th call of all."""

    def call(path: Path, *arguments: Any, **kwargs: Any) -> Any:
        if next(calls) == n:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return method(path, *arguments, **kwargs)

    return call


@pytest.mark.needs_dags("rag_pipeline", "fine_tuning")
def test_every_module_is_copied_that_might_be_imported_at_run_time():
    modules = {str(path) for path in analyse("rag_pipeline", OURS).modules}
    assert {"include/ai/__init__.py", "include/rag/stores/lancedb_store.py"} <= modules
    assert "include/jobs/trigger.py" in {str(path) for path in analyse("fine_tuning", OURS).modules}


@pytest.mark.needs_dags("map_expand")
def test_no_more_is_copied_than_what_a_dag_uses():
    pattern = analyse("map_expand", OURS)
    assert not any("ai" in path.parts for path in pattern.modules)
    assert pattern.data == []
    assert pattern.connections == []
    assert not pattern.pool


def test_what_only_a_type_checker_or_an_optional_layer_needs_is_not_copied(tmp_path, monkeypatch):
    files = {
        "dags/one.py": "from include.one import two",
        "include/one/__init__.py": """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from include.one.types import Number
else:
    import include.one.at_run_time
try:
    from include.one import layer
except ImportError:
    layer = None
    import include.one.instead
def later():
    import include.one.lazy
TRIGGER = "include.one.trigger.Trigger"
""",
        **{f"include/one/{name}.py": "" for name in ("two", "types", "layer", "lazy", "trigger", "at_run_time")},
        "include/one/instead.py": "",
        "requirements.txt": "airflow-ai-sdk==1",
        "common-ai/requirements.txt": "",
        ".gitignore": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(needs, "PROJECT", tmp_path)
    monkeypatch.setattr(needs, "dag_file", lambda name: Path("dags", f"{name}.py"))
    modules = {path.stem for path in analyse("one", AIRFLOW_AI_SDK).modules}
    assert modules == {"__init__", "two", "at_run_time", "instead", "lazy", "trigger"}


@pytest.mark.needs_dags("map_expand", "prompt_chaining", "spend_report")
def test_layers_are_copied_only_if_they_are_asked_for(project):
    plain = {str(path) for path in analyse("prompt_chaining", OURS).files}
    spend = {str(path) for path in analyse("prompt_chaining", OURS, ["spend"]).files}
    brought = {"include/spend/budgets.py", "include/page/templates/run.html", "include/page/static/page.css"}
    assert plain < spend
    assert not brought & plain
    assert brought | {"plugins/genai_page.py"} <= spend
    traces = {str(path) for path in analyse("prompt_chaining", OURS, ["traces"]).files}
    assert {"plugins/genai_traces.py", "include/ai/tracing.py", "include/traces/sending.py"} <= traces - plain - spend
    copied = copy("prompt_chaining", project, ["spend", "limits", "fallbacks", "prices", "reuse"])
    paths = {str(file.path) for file in copied.files}
    assert {"dags/spend_report.py", "include/ai/account.py", "include/ai/fallbacks.py"} <= paths
    assert {"dags/forget_answers.py", "include/ai/reuse.py", "include/ai/effects.py", "include/ai/attempt.py"} <= paths
    assert "include/ai/attempt.py" not in plain
    with pytest.raises(
        CopyError,
        match=r"no layer 'wings'\. There are: canary, fallbacks, limits, prices, rerank, reuse, spend, traces, usage",
    ):
        copy("prompt_chaining", project, ["wings"])


@pytest.mark.parametrize("dag_id", AT_MOST)
def test_a_pattern_brings_no_more_lines_than_was_promised(dag_id):
    if dag_id in DAGS:
        assert lines_of_include(analyse(dag_id, OURS)).code <= AT_MOST[dag_id]


def test_lines_of_code_are_those_without_blank_lines_comments_and_docstrings():
    text = '''"""A module.

On two lines.
"""

# A comment.
NUMBER = 1  # with a comment


def two() -> str:
    """Two lines of code, and a string of three."""
    # Another comment.
    return """a

    b"""
'''
    assert sorted(code_lines(text)) == [7, 10, 13, 14, 15]


def test_the_seam_of_the_layers_comes_with_any_of_them_and_only_then():
    seam = Path("include/ai/layers.py")
    assert seam not in analyse("prompt_chaining", OURS).modules
    for layer in ("usage", "limits", "fallbacks", "reuse", "traces"):
        assert seam in analyse("prompt_chaining", OURS, [layer]).modules
    assert seam in analyse("batch_inference_at_scale", OURS).modules
    assert seam not in analyse("batch_api_inference", OURS).modules


@pytest.mark.needs_dags("prompt_chaining")
@pytest.mark.parametrize(
    ("image", "requirements", "sdk"),
    [
        ("runtime:3.1-17-python-3.12-base", "", AIRFLOW_AI_SDK),
        ("runtime:3.1-17", f"{COMMON_AI}==0.9", COMMON_AI),
        ("runtime:3.2-1", "", COMMON_AI),
        ("runtime:3.3-8-python-3.12", "", COMMON_AI),
        ("--platform=linux/amd64 apache/airflow:3.3.2-python3.12", "", COMMON_AI),
        ("ours/airflow-of-us:prod", "apache-airflow==3.3.1", COMMON_AI),
        ("ours/airflow:2.9", "Airflow_AI.SDK", AIRFLOW_AI_SDK),
        ("runtime:3.3-8", "#airflow-ai-sdk==0.1.8", COMMON_AI),
    ],
)
def test_the_sdk_is_chosen_by_the_projects_airflow(tmp_path, image, requirements, sdk):
    project = with_files(tmp_path, {"Dockerfile": f"FROM {image}\n", "requirements.txt": requirements})
    copied = copy("prompt_chaining", project)
    modules = {SDKS[sdk]: [], **{module: [] for module in SDKS.values()}}
    for file in copied.pattern.modules:
        for module in modules:
            modules[module] += [file] * (f"from {module}." in (project / file).read_text())
    assert {module for module, files in modules.items() if files} == {SDKS[sdk]}
    packages = (project / "requirements.txt").read_text().lower()
    assert requirements.lower() in packages
    assert f", with {sdk}:" in report(copied)


@pytest.mark.needs_dags("prompt_chaining")
def test_the_image_is_that_of_the_last_stage_with_its_arguments(tmp_path):
    dockerfile = "ARG TAG=3.3-8\nfrom runtime:${TAG} AS base\nFROM runtime:3.1-1 AS other\nFROM base\n"
    assert copy("prompt_chaining", with_files(tmp_path, {"Dockerfile": dockerfile})).sdk == COMMON_AI


@pytest.mark.needs_dags("map_expand")
@pytest.mark.parametrize(
    ("image", "requirements", "said"),
    [
        ("quay.io/astronomer/astro-runtime:12.1.0", "", r"Airflow 2 \(quay.io/astronomer/astro-runtime:12.1.0\)"),
        ("apache/airflow:2.10.3", "", r"Airflow 2 \(apache/airflow:2.10.3\)"),
        ("runtime:3.0-4", "", r"Airflow 3.0 \(runtime:3.0-4\)"),
        ("ours:prod", "apache-airflow[celery]==2.9.0", r"Airflow 2 \(apache-airflow\[celery\]==2.9.0\)"),
        ("ours/airflow:3.3", "", "ours/airflow:3.3 .* does not say which Airflow it has"),
        ("runtime:3.3-8", "airflow-ai-sdk", "Airflow 3.3 .* does not start with airflow-ai-sdk"),
        ("runtime:3.1-17", f"airflow-ai-sdk\n{COMMON_AI}", "two AI SDKs"),
    ],
)
def test_an_airflow_that_the_patterns_do_not_run_on_is_refused_by_name(tmp_path, image, requirements, said):
    project = with_files(tmp_path, {"Dockerfile": f"FROM {image}\n", "requirements.txt": requirements})
    refused(project, "map_expand", said)


@pytest.mark.needs_dags("rag_pipeline")
def test_the_packages_are_added_and_the_projects_own_stay(project):
    copy("rag_pipeline", project)
    lines = (project / "requirements.txt").read_text().splitlines()
    assert lines[0] == "pandas==2.3.3  # of their own"
    assert any(line.startswith("lancedb==") for line in lines)
    assert any(line.startswith("pydantic-ai-slim[openai]==") for line in lines)
    assert not any("kafka" in line for line in lines)


@pytest.mark.needs_dags("rag_pipeline")
def test_names_of_packages_compare_as_pip_does_and_lines_end_as_they_did(project):
    there = b"\xef\xbb\xbfLanceDB==0.1.0\r\nsemantic_text.splitter >= 0.1  # ours\r\n# pypdf==1.0\r\n-r more.txt"
    (project / "requirements.txt").write_bytes(there)
    (project / ".gitignore").write_bytes(b".env\r\n")
    said = report(copy("rag_pipeline", project))
    after = (project / "requirements.txt").read_bytes()
    assert after.startswith(there + b"\r\n")
    assert after.count(b"\n") == after.count(b"\r\n")
    added = [line for line in after[len(there) :].decode().splitlines() if line]
    names = {line.split("==")[0] for line in added}
    assert "pypdf" in names
    assert not names & {"lancedb", "semantic-text-splitter"}
    assert "(it has LanceDB==0.1.0: check that they agree)" in said
    assert "(it has semantic_text.splitter >= 0.1: check that they agree)" in said
    assert (project / ".gitignore").read_bytes() == b".env\r\ninclude/.data/\r\n"


@pytest.mark.needs_dags("rag_pipeline")
def test_twice_is_the_same_as_once(project):
    copy("rag_pipeline", project)
    once = snapshot(project)
    copied = copy("rag_pipeline", project)
    assert snapshot(project) == once
    assert {file.state for file in copied.files} == {UNCHANGED}


@pytest.mark.needs_dags("prompt_chaining", "routing")
def test_a_file_that_the_project_changed_stays_and_is_shown_and_the_next_pattern_is_copied(project):
    first = copy("prompt_chaining", project)
    module = changeable(first)
    theirs = (project / module).read_text() + "theirs = True\n"
    (project / module).write_text(theirs)
    second = copy("routing", project)
    assert (project / module).read_text() == theirs
    assert {file.path: file.state for file in second.files}[module] == KEPT
    assert "-theirs = True" in report(second)
    assert (project / "dags" / "routing.py").exists()
    assert {file.path: file.state for file in copy("routing", project).files}[module] == KEPT, "as often as it is asked"


@pytest.mark.needs_dags("prompt_chaining")
def test_a_file_that_the_project_has_not_changed_is_updated_and_keeps_its_ends_of_lines(project):
    module = changeable(copy("prompt_chaining", project))
    ours = (project / module).read_bytes()
    old = b"old = True\r\n"
    (project / module).write_bytes(old)
    manifest = json.loads((project / MANIFEST).read_text())
    manifest["files"][str(module)]["sha256"] = hashlib.sha256(old.replace(b"\r", b"")).hexdigest()
    (project / MANIFEST).write_text(json.dumps(manifest))
    copied = copy("prompt_chaining", project)
    assert {file.path: file.state for file in copied.files}[module] == UPDATED
    assert (project / module).read_bytes() == ours.replace(b"\n", b"\r\n")
    assert {file.state for file in copy("prompt_chaining", project).files} == {UNCHANGED}


@pytest.mark.needs_dags("prompt_chaining")
def test_the_manifest_says_where_each_file_came_from(project):
    copied = copy("prompt_chaining", project)
    files = json.loads((project / MANIFEST).read_text())["files"]
    assert set(files) == {str(file.path) for file in copied.files}
    assert files["dags/prompt_chaining.py"]["file"] == "dags/patterns/prompt_chaining.py"
    assert {file.state for file in copied.files} == {NEW}


@pytest.mark.needs_dags("map_expand")
@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "EOF"), ('{"project": "x", "files": {"a": {"file": 1}}}', r"files\.a\.file"), ("[]", "object")],
)
def test_a_broken_manifest_is_named(project, text, said):
    (project / MANIFEST).write_text(text)
    refused(project, "map_expand", f"{MANIFEST}.*{said}")


@pytest.mark.needs_dags("map_expand")
def test_a_package_with_a_docstring_of_its_own_is_not_in_the_way(project):
    docstring = '"""What this team shares."""\n'
    for name in ("include/__init__.py", "include/common/__init__.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(docstring)
    copy("map_expand", project)
    assert (project / "include" / "common" / "__init__.py").read_text() == docstring


@pytest.mark.needs_dags("rag_pipeline")
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"include/common/storage.py": "mine = True"}, "include/common/storage.py is a file of the project"),
        ({"include/common.py": ""}, "include/common.py of the project and the package include/common/"),
        ({"include.py": ""}, "include.py of the project and the package include/"),
        ({"include/common/storage/x.py": ""}, "package include/common/storage/ of the project and .*/storage.py"),
        ({"dags/include/x.py": ""}, "dags/include of the project and the package include/"),
        ({"dags/team/x.py": "@dag()\ndef rag_pipeline(): ..."}, "the DAG rag_pipeline is in dags/team/x.py already"),
        ({"dags/y.py": "airflow.sdk.DAG(dag_id='rag_pipeline')"}, "the DAG rag_pipeline is in dags/y.py already"),
        (
            {"dags/z.py": "@sdk.dag('rag_pipeline', tags=[])\ndef z(): ..."},
            "the DAG rag_pipeline is in dags/z.py already",
        ),
        ({"include": "a file"}, "include is not a folder"),
        ({"include/common/storage.py/notes.txt": "a folder"}, "include/common/storage.py is not a file"),
        ({"requirements.txt": "pandas==1\n".encode("utf-16")}, "requirements.txt cannot be read: not UTF-8"),
        ({".gitignore": b"\xe4"}, ".gitignore cannot be read: not UTF-8"),
        ({"requirements.txt/x": ""}, "requirements.txt"),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_is_written(tmp_path, files, said):
    refused(with_files(tmp_path, files), "rag_pipeline", said)


@pytest.mark.needs_dags("map_expand")
def test_a_dag_of_theirs_that_cannot_be_parsed_or_has_another_id_is_not_in_the_way(tmp_path):
    files = {"dags/a.py": "def (", "dags/b.py": b"\xff\x00", "dags/c.py": "@dag('x')\ndef map_expand(): ..."}
    copy("map_expand", with_files(tmp_path, files))


@pytest.mark.needs_dags("map_expand")
def test_this_project_is_not_copied_into_itself(tmp_path):
    (tmp_path / "link").symlink_to(PROJECT)
    with pytest.raises(CopyError, match="this project itself"):
        copy("map_expand", tmp_path / "link")


@pytest.mark.needs_dags("map_expand")
def test_nothing_is_left_behind_wherever_the_writing_fails(project, monkeypatch):
    (project / ".gitignore").write_text("theirs\n")
    before = snapshot(project)
    for n in itertools.count():
        with monkeypatch.context() as patched:
            calls = itertools.count()
            for name in ("mkdir", "write_bytes", "replace"):
                patched.setattr(Path, name, failing(getattr(Path, name), calls, n))
            with contextlib.suppress(CopyError):
                copy("map_expand", project)
                break
        assert snapshot(project) == before
    assert n > 15
    assert snapshot(project) != before


@pytest.mark.needs_dags("rag_pipeline")
def test_what_is_left_to_do_is_said(project):
    said = report(copy("rag_pipeline", project))
    for connection in ("PYDANTICAI", "EMBEDDINGS", "VECTOR_STORE"):
        assert f"AIRFLOW_CONN_{connection}_DEFAULT={{" in said
    assert "#GENAI_STORAGE=" in said
    assert "llm_pool" in said
    assert "DOCUMENTS_PER_TASK" in said
    assert "include/knowledge_base/: sample data" in said
    assert (project / ".gitignore").read_text().splitlines() == ["include/.data/", ".env"]


@pytest.mark.parametrize("dag_id", DAGS)
def test_nothing_is_said_about_what_was_not_copied(dag_id, project):
    copied = copy(dag_id, project)
    said = report(copied)
    assert "docs/" not in said
    assert ".env.example" not in said
    for name in (*copied.pattern.connections, *copied.pattern.settings):
        assert re.search(rf"{name.upper()}=\S", said), f".env.example has no example of {name}"


# What only this project has.
OF_THIS_PROJECT = re.compile(
    r"docs/|see docs|local/|local\.\w|examples/|README|env\.example|common-ai/|Kestrel|`?make [a-z]+`|make (copy|demo)"
)


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("dag_id", DAGS)
def test_no_code_that_is_copied_speaks_of_what_is_not(dag_id, sdk):
    for path in analyse(dag_id, sdk, list(needs.LAYERS)).files:
        if path.suffix == ".py" and not path.is_relative_to("include/sample"):  # the data of a fictional company
            found = OF_THIS_PROJECT.search((PROJECT / path).read_text())
            assert not found, f"{path}: {found[0]}"


def test_the_table_of_the_docs_says_of_each_dag_what_it_needs():
    page = PAGE.read_text()
    listed = page.partition(TABLE)[2].partition("\n\n")[0].splitlines()
    assert [row.split("`")[1] for row in listed] == sorted(template_dags())
    for dag_id in DAGS:
        assert table_row(dag_id).strip() in listed, "update the table: .venv/bin/python -m local.copy.report"


@pytest.mark.needs_dags("rag_pipeline")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "make copy PATTERN=rag_pipeline TO="),
        (["PATTERN=nothing", "TO=."], "this project itself"),
        (["PATTERN=rag_pipeline", "TO=/nowhere"], "astro dev init"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(arguments, said):
    ended = subprocess.run(["make", "copy", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert ended.returncode != 0
    assert said in ended.stdout + ended.stderr


def test_a_dag_that_there_is_not_is_answered_with_those_that_there_are(project):
    refused(project, "nothing", "There are: ")
