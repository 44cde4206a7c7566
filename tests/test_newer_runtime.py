"""Whether the Dockerfiles are behind, by a catalog of the form of Astronomer's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import date
from typing import Any

import pytest
import yaml

from local.newer_runtime import DOCKERFILES, findings
from tests.conftest import PROJECT

pytestmark = [
    pytest.mark.one_stack,
    pytest.mark.skipif(not (PROJECT / ".github").exists(), reason="inside the image"),
]

TODAY = date(2026, 11, 26)


def build(airflow: str = "3.1.8", released: str = "2026-09-10", **more: object) -> dict[str, Any]:
    metadata = {"airflowVersion": airflow, "channel": "stable", "releaseDate": released, **more}
    return {"metadata": metadata, "migrations": {"airflowDatabase": False}}


def said(tag: str, **builds: dict[str, Any]) -> list[str]:
    catalog = {
        "runtimeVersionsV3": {
            name.replace("_", "-").replace("v", "").replace("p", "."): each for name, each in builds.items()
        }
    }
    text = f"# comment\nFROM astrocrpublic.azurecr.io/runtime:{tag}-python-3.12\n"
    return list(findings(catalog, {"Dockerfile": text}, TODAY))


def test_the_newest_build_of_the_series_is_not_behind():
    assert said("3.1-21", v3p1_9=build(), v3p1_21=build(), v3p2_30=build("3.2.2")) == []


def test_one_that_is_behind_is_named_with_what_is_out():
    (found,) = said("3.1-17", v3p1_17=build(), v3p1_21=build(), v3p1_9=build())
    assert "Dockerfile: 3.1-17 is behind; 3.1-21 is out since 2026-09-10." in found
    assert "Makefile" not in found


def test_where_the_airflow_moves_the_makefile_is_named():
    (found,) = said("3.1-17", v3p1_17=build("3.1.8"), v3p1_22=build("3.1.9"))
    assert "Its Airflow is 3.1.9 instead of 3.1.8: AIRFLOW in the Makefile moves, too." in found


@pytest.mark.parametrize(
    "other", [build(yanked=True), build(channel="deprecated"), build(released="2026-11-27"), build(channel="alpha")]
)
def test_a_build_that_nobody_should_take_is_left_out(other):
    assert said("3.1-17", v3p1_17=build(), v3p1_22=other) == []


def test_one_that_was_withdrawn_is_named_with_the_reason():
    (found,) = said("3.1-17", v3p1_17=build(yanked=True, yankedReason="It loses tasks."))
    assert "3.1-17 was withdrawn: It loses tasks." in found


@pytest.mark.parametrize("catalog", ["{}", "[]", "<html>", '{"runtimeVersionsV3": {"3.1-1": {}}}'])
def test_a_catalog_of_another_form_is_no_success(catalog, tmp_path):
    (tmp_path / "catalog.json").write_text(catalog)
    ended = run(tmp_path / "catalog.json")
    assert ended.returncode == 1
    assert "Cannot check whether Astro Runtime is behind" in ended.stderr


def run(catalog: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-m", "local.newer_runtime", str(catalog)]  # -S: without any package
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


def test_the_command_needs_no_package_and_reads_both_dockerfiles(tmp_path):
    builds = {"3.1-999": build(), "3.3-999": build("3.3.2")}
    (tmp_path / "catalog.json").write_text(json.dumps({"runtimeVersionsV3": builds}))
    ended = run(tmp_path / "catalog.json")
    assert ended.returncode == 1
    for name in DOCKERFILES:
        assert f"\n{name}: " in "\n" + ended.stderr


def test_it_is_run_each_week():
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "runtime.yml").read_text())
    (schedule,) = workflow[True]["schedule"]  # YAML reads `on` as true
    assert schedule["cron"].endswith("* * 1")
    assert workflow["jobs"]["newer"]["steps"][-1]["run"] == "python3 -m local.newer_runtime"


def renovate() -> Any:
    return json.loads((PROJECT / "renovate.json").read_text())


def python_regex(text: str) -> str:
    return re.sub(r"\(\?<(?=[a-zA-Z])", "(?P<", text.removeprefix("regex:").strip("/"))


def test_renovate_moves_each_runtime_within_its_airflow_and_python_and_the_docs_with_it():
    rules = [
        rule
        for rule in renovate()["packageRules"]
        if "astrocrpublic.azurecr.io/runtime" in rule.get("matchPackageNames", [])
    ]
    versioning = python_regex(next(rule["versioning"] for rule in rules if "versioning" in rule))
    for name in DOCKERFILES:
        (tag,) = re.findall(r"^FROM \S+:(\S+)$", (PROJECT / name).read_text(), re.MULTILINE)
        allowed = [rule["allowedVersions"] for rule in rules if rule.get("matchFileNames") == [name]]
        if (PROJECT / "Dockerfile").read_text() != (PROJECT / "common-ai" / "Dockerfile").read_text():
            assert re.fullmatch(python_regex(allowed[0]), tag), f"renovate.json would never move {name}"
        assert re.fullmatch(versioning, tag)
        docs = renovate()["customManagers"][0]
        text = (PROJECT / "docs" / "moving-to-common-ai.md").read_text()
        assert tag.split("-python")[0] in re.findall(python_regex(docs["matchStrings"][0]), text)


def test_each_file_that_renovate_looks_into_by_a_pattern_is_there_and_has_what_it_looks_for():
    for manager in renovate()["customManagers"]:
        (pattern,) = manager["managerFilePatterns"]
        name = python_regex(pattern).strip("^$").replace("\\", "")
        assert re.search(python_regex(manager["matchStrings"][0]), (PROJECT / name).read_text()), name
