"""`astro dev parse`, `astro dev pytest` and standalone mode, under the conditions that the Astro CLI sets.

There is no Docker and no Astro CLI here. The image is stood for by a folder with the files that would be in it, and by
a Python that finds only what requirements.txt and Airflow bring.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from include.ai import COMMON_AI, active_sdk
from tests.conftest import PROJECT, dag_files, own_dag_files
from tests.project_files import project_files

# What the Astro CLI's own version of the test puts in the place of os.getenv.
MOCKED_GETENV = """
import os

def pytest_collection_finish():
    def getenv(key, default=None):
        return os.environ.get(key) or default or f"MOCKED_{key.upper()}_VALUE"
    os.getenv = getenv
"""

ONLY_THESE_PACKAGES = """
import json, sys

class NotInTheImage:
    missing = set(json.loads({missing!r}))

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.missing:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInTheImage())
"""


def requirements() -> list[Requirement]:
    folder = PROJECT / "common-ai" if active_sdk() == COMMON_AI else PROJECT
    lines = (folder / "requirements.txt").read_text().splitlines()
    return [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


def with_dependencies(roots: Iterable[Requirement]) -> set[str]:
    """The names of all packages that installing these brings."""
    found: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(root.name), extra) for root in roots for extra in ("", *root.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            needed = [Requirement(text) for text in distribution(name).requires or []]
        except PackageNotFoundError:
            continue
        for each in needed:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(each.name), wanted) for wanted in ("", *each.extras)]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def missing_packages() -> list[str]:
    """The modules that are here and would not be in the image."""
    installed = with_dependencies([*requirements(), Requirement("apache-airflow")])
    return [
        module
        for module, names in packages_distributions().items()
        if not any(canonicalize_name(name) in installed for name in names)
    ]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps the file out of the image."""
    patterns = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    parts = Path(path).parts
    heads = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatch(head, pattern) for head in heads for pattern in patterns)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /usr/local/airflow of the image: this project's files, but for what .dockerignore keeps out.

    DAGs that the template did not bring are left out, too: whether they import is not what is tested here.
    """
    folder = tmp_path_factory.mktemp("image")
    for name in project_files():
        if not ignored(name.as_posix()) and PROJECT / name not in own_dag_files():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)
    return folder


def test_a_push_of_what_is_not_in_the_image_deploys_nothing_and_any_other_does(image):
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "deploy.yml").read_text())
    skipped = [
        pattern.removesuffix("/**") for pattern in workflow[True]["push"]["paths-ignore"]
    ]  # `on` is true in YAML
    for name in project_files():
        deploys_nothing = name.as_posix() in skipped or name.parts[0] in skipped or name.parts[0] == ".git"
        in_image = (image / name).exists()
        if PROJECT / name not in own_dag_files():
            assert deploys_nothing == (not in_image) or name.name == ".dockerignore", name
    # The action takes every path that has dags/ in it for one of the DAGs' folder.
    assert not [name for name in project_files() if "dags/" in name.as_posix() and name.parts[0] != "dags"]


def run_pytest(image: Path, missing: list[str], tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """How `pytest` ends in the image, and what it says."""
    (tmp_path / "sitecustomize.py").write_text(ONLY_THESE_PACKAGES.format(missing=json.dumps(missing)))
    (tmp_path / "mocked_getenv.py").write_text(MOCKED_GETENV)
    keep = ("PATH", "LANG", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in keep if name in os.environ} | {
        "AIRFLOW_HOME": str(image),
        "PYTHONPATH": f"{image}{os.pathsep}{tmp_path}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "ASTRONOMER_ENVIRONMENT": "local",
    }
    command = [sys.executable, "-m", "pytest", "-p", "mocked_getenv", "-p", "no:cacheprovider", *arguments]
    ended = subprocess.run(command, cwd=image, env=environment, capture_output=True, text=True, timeout=600)
    return ended.returncode, ended.stdout + ended.stderr


def test_the_image_has_neither_secrets_nor_what_only_the_laptop_needs(image, missing_packages):
    assert (image / "dags").is_dir()
    for name in (".env", ".git", "airflow_settings.yaml", "docker-compose.override.yml", ".venv"):
        assert not (image / name).exists(), name
    assert {"llmock", "xllamacpp", "wordllama", "moto"} <= set(missing_packages)
    assert not {"airflow", "pydantic_ai", "lancedb", "pytest"} & set(missing_packages)


@pytest.mark.one_stack
def test_astro_dev_parse_passes_and_would_name_a_dag_that_does_not_import(image, missing_packages, tmp_path):
    broken = image / "dags" / "broken.py"
    broken.write_text("from airflow.sdk import dag\n\nfrom include.nothing import x\n")
    try:
        status, said = run_pytest(image, missing_packages, tmp_path, ".astro/test_dag_integrity_default.py")
    finally:
        broken.unlink()
    assert status == 1
    assert "dags/broken.py does not import" in said
    assert f"1 failed, {len(dag_files())} passed" in said, said[-3000:]


@pytest.mark.one_stack
def test_astro_dev_pytest_passes(image, missing_packages, tmp_path):
    status, said = run_pytest(image, missing_packages, tmp_path, "tests/")
    assert status == 0, said[-4000:]
    assert re.search(r"^\d\d+ passed", said, re.MULTILINE)


STANDALONE = """
import runpy, sys
from pathlib import Path
for file in sys.argv[1:]:
    runpy.run_path(file)
from include.common.storage import storage_path
from include.sample import data
print(storage_path(), len(data.reviews()))
"""


def test_in_standalone_mode_every_dag_is_parsed_and_every_path_is_the_projects(tmp_path):
    home = tmp_path / ".astro" / "standalone"  # the CLI's AIRFLOW_HOME, which is not the project
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "ASTRONOMER_ENVIRONMENT": "local",
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    files = [str(path) for path in dag_files()]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STANDALONE, *files],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.splitlines()[-1] == f"file://{PROJECT / 'include' / '.data' / 'artifacts'} 200"
