"""constraints.txt: what the image gets besides its Airflow is what was tested."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from include.ai import COMMON_AI, active_sdk
from tests.conftest import PROJECT
from tests.test_astro_dev import requirements, with_dependencies

FOLDER = PROJECT / "common-ai" if active_sdk() == COMMON_AI else PROJECT


def constraints() -> dict[str, Requirement]:
    """Those that hold on this machine, by name."""
    lines = map(Requirement, (FOLDER / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(line.name): line for line in lines if line.marker is None or line.marker.evaluate()}


def test_each_package_that_the_requirements_bring_is_constrained_to_the_version_of_the_tests():
    brought = with_dependencies(requirements()) - with_dependencies([Requirement("apache-airflow")])
    here = {name for name in brought if name in constraints() or _installed(name)}
    assert {name for name in here if name not in constraints()} == set()
    assert {name: str(each.specifier) for name, each in constraints().items() if name in here} == {
        name: f"=={version(name)}" for name in here
    }


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False


def test_what_airflow_brings_is_left_to_the_image():
    assert not with_dependencies([Requirement("apache-airflow")]) & set(constraints())


def test_a_resolver_finds_the_requirements_with_the_constraints_and_keeps_each_of_them(tmp_path: Path):
    (tmp_path / "airflow.in").write_text(f"apache-airflow=={version('apache-airflow')}\n")
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    inputs = ["--constraints", FOLDER / "constraints.txt", FOLDER / "requirements.txt", tmp_path / "airflow.in"]
    ended = subprocess.run([*command, *inputs], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    if ended.returncode and "No solution found" not in ended.stderr:
        pytest.skip(f"CONSTRAINTS NOT CHECKED BY A RESOLVER: no package index can be reached. {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    found = {canonicalize_name(each.name): each for each in map(Requirement, ended.stdout.splitlines())}
    assert {name: str(found[name].specifier) for name in constraints() if name in found} == {
        name: str(each.specifier) for name, each in constraints().items() if name in found
    }
    assert set(constraints()) <= set(found)
