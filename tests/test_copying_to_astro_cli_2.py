"""`make copy` into a project of the Astro CLI 2, whose packages are in pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.copy import CopyError
from local.copy.manifest import dependencies, with_dependencies
from local.copy.needs import AIRFLOW_AI_SDK, pins_by_sdk
from local.copy.put import copy
from local.copy.report import report

pytestmark = pytest.mark.one_stack

SERIES = "3.1" if AIRFLOW_AI_SDK in pins_by_sdk() else "3.3"
# As `astro init` writes it, and as people do.
MANIFEST = """# ours
[project]
name = 'orders'  # the team's
requires-python = '>=3.11'
dependencies = [
    "apache-airflow==SERIES.*",  # the one place, [not] here
    'pandas[parquet]==2.3.3'  # theirs
    # "lancedb==0.1" is gone
]

[tool.astro]
packages = ['libpq-dev']

[dependency-groups]
dev = ["ruff"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dags").mkdir()
    (tmp_path / "pyproject.toml").write_text(MANIFEST.replace("SERIES", SERIES))
    return tmp_path


def test_packages_are_added_to_its_dependencies_and_all_else_stays_as_it_is(project):
    before = (project / "pyproject.toml").read_text()

    copied = copy("map_expand", project)

    after = (project / "pyproject.toml").read_text()
    added = [line.strip().strip(",").strip('"') for line in after.splitlines() if line not in before.splitlines()]
    assert set(copied.pattern.requirements) < {*added, *tomllib.loads(after)["project"]["dependencies"]}
    assert [line for line in before.splitlines() if line not in after.splitlines()] == [
        "    'pandas[parquet]==2.3.3'  # theirs"
    ]
    assert "    'pandas[parquet]==2.3.3',  # theirs" in after
    assert tomllib.loads(after)["tool"] == {"astro": {"packages": ["libpq-dev"]}}
    assert not (project / "requirements.txt").exists()
    assert "Packages, in its pyproject.toml:" in report(copied)
    assert f"Airflow {SERIES}" in report(copied)

    again = copy("map_expand", project)
    assert (project / "pyproject.toml").read_text() == after
    assert {file.state for file in again.files} == {"up to date"}


def test_where_it_has_kept_a_dockerfile_the_image_gets_the_packages_too(project):
    (project / "Dockerfile").write_text("FROM astrocrpublic.azurecr.io/runtime:3.1-21\nRUN true\n")
    (project / "requirements.txt").write_text("pandas==2.3.3\n")

    copied = copy("map_expand", project)

    listed = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    in_image = (project / "requirements.txt").read_text().splitlines()
    assert set(copied.pattern.requirements) <= set(listed)
    assert set(copied.pattern.requirements) <= set(in_image)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (MANIFEST.replace("SERIES", "2.10"), "is on Airflow 2"),
        (MANIFEST.replace("==SERIES.*", ""), "does not say which Airflow it has"),
        ("[project]\nname = 'x'\ndynamic = ['dependencies']\n[tool.astro]\n", "needs a list `dependencies`"),
        ("[tool.astro\n", "is not valid TOML"),
        (
            f"[tool.astro]\n[project]\nname='x'\ndependencies = ['apache-airflow==3.3.*', '{AIRFLOW_AI_SDK}==0.1.8']",
            "pyproject.toml",
        ),
    ],
)
def test_what_it_cannot_be_copied_to_is_named_and_nothing_is_written(project, manifest, said):
    (project / "pyproject.toml").write_text(manifest)
    with pytest.raises(CopyError, match=said):
        copy("map_expand", project)
    assert (project / "pyproject.toml").read_text() == manifest
    assert not (project / "include").exists()


def test_a_pyproject_of_other_tools_changes_nothing(project):
    (project / "pyproject.toml").write_text("[tool.ruff]\nline-length = 100\n")
    with pytest.raises(CopyError, match="no Dockerfile"):
        copy("map_expand", project)


PINS = ["a==1", "b[x,y]==2.0"]
spaces = st.sampled_from(["", " ", "\n    ", '  # a comment, with ] and "\n', "\r\n"])
names = st.sampled_from(['"p==1"', "'q[x]>=2; python_version < \"3.13\"'", '"r @ https://h/#]"'])


@given(st.lists(st.tuples(spaces, names, spaces), max_size=3), st.booleans(), spaces)
def test_however_a_list_is_written_it_gets_the_pins_at_its_end_and_nothing_else_changes(items, comma, end):
    body = ",".join("".join(item) for item in items) + ("," if comma and items else "") + end
    text = f"[project]\nname = 'x'\ndependencies = [{body}]\n[tool.astro]\n[x]\ndependencies = ['y']\n"
    try:
        before = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a comment that has eaten the rest
    before["project"]["dependencies"] += PINS
    added = with_dependencies(text, PINS, "here")
    assert tomllib.loads(added) == before
    assert dependencies(added, "here") == before["project"]["dependencies"]
