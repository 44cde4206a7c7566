"""The manifest that docs/astro-cli-2.md plans for version 2 of the Astro CLI, by what that does with it: uv.

Version 2 itself is not here. Its `astro local start` runs `uv sync`, whose first half, `uv lock`, runs here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.environment import RUN_ID_PATTERN
from tests.conftest import PROJECT

pytestmark = [
    pytest.mark.one_stack,
    pytest.mark.skipif(not (PROJECT / "docs").exists(), reason="inside the image"),
]


def lines(name: str) -> list[str]:
    found = (line.split(" #")[0].strip() for line in (PROJECT / name).read_text().splitlines())
    return [line for line in found if line and not line.startswith("#")]


def manifest_text() -> str:
    """The manifest of the page, with what it leaves to two files."""
    page = (PROJECT / "docs" / "astro-cli-2.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for comment, name in (
        ("and each line of requirements.txt", "requirements.txt"),
        ("each line of constraints.txt", "constraints.txt"),
    ):
        assert f"    # {comment}\n" in block
        block = block.replace(f"    # {comment}\n", "".join(f'    "{line}",\n' for line in lines(name)))
    return block


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return tomllib.loads(manifest_text())


@pytest.fixture
def default_stack() -> None:
    if "airflow-ai-sdk" not in (PROJECT / "requirements.txt").read_text().split("# Models")[1].splitlines()[1]:
        pytest.skip("this project has moved to common-ai; the page is about the default stack")


def test_uv_resolves_it_to_the_versions_that_were_tested(manifest, default_stack, tmp_path):
    (tmp_path / "pyproject.toml").write_text(manifest_text())
    command = [Path(sys.executable).with_name("uv"), "lock", "--quiet", "--no-python-downloads"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    if ended.returncode and "No solution found" not in ended.stderr:
        pytest.skip(f"THE MANIFEST WAS NOT RESOLVED: no index or no Python 3.12 is here. {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    locked = tomllib.loads((tmp_path / "uv.lock").read_text())["package"]
    found = {package["name"]: package["version"] for package in locked}
    for line in [*lines("requirements.txt"), *lines("constraints.txt")]:
        name, exact, wanted = re.sub(r"\[.*?\]", "", line.split(";")[0]).strip().partition("==")
        if exact and name in found and "python_full_version < '3.12'" not in line:
            assert found[name] == wanted, line


def test_it_says_the_same_as_the_files_of_version_1(manifest):
    (pool,) = yaml.safe_load((PROJECT / "airflow_settings.yaml").read_text())["airflow"]["pools"]
    assert manifest["tool"]["astro"]["pools"] == {
        pool["pool_name"]: {"slots": pool["pool_slot"], "description": pool["pool_description"]}
    }
    assert manifest["tool"]["astro"]["env"]["AIRFLOW__SCHEDULER__ALLOWED_RUN_ID_PATTERN"] == RUN_ID_PATTERN
    airflow = re.search(r"^AIRFLOW := (\S+)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert f"apache-airflow=={airflow[1]}" in manifest["project"]["dependencies"]


def test_our_own_pyproject_names_the_pythons_that_make_takes():
    ours = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert ours["project"]["requires-python"] == ">=3.11,<3.13"
    assert "sys.version_info[:2] not in ((3, 11), (3, 12))" in (PROJECT / "Makefile").read_text()
    assert "astro" not in ours["tool"], "this is a project of the Astro CLI 1.x"
