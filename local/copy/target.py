"""The Astro project that a pattern is copied into: which Airflow and packages it has, and what prevents a copy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from local.copy import CopyError
from local.copy.manifest import dependencies
from local.copy.needs import AIRFLOW_AI_SDK, COMMON_AI, SDKS, package, pins_by_sdk
from local.environment import PROJECT

MANIFEST = "pyproject.toml"
OLDEST_AIRFLOW = (3, 1)
NEWEST_FOR_AIRFLOW_AI_SDK = (3, 1)
FROM = re.compile(r"^[ \t]*FROM[ \t]+(?:--\S+[ \t]+)*(\S+)(?:[ \t]+AS[ \t]+(\S+))?", re.IGNORECASE | re.MULTILINE)
ARGUMENT = re.compile(r"^[ \t]*ARG[ \t]+(\w+)=[\"']?([^\s\"']*)", re.IGNORECASE | re.MULTILINE)
# Astro Runtime 3.1-21 has Airflow 3.1, one with a version of three numbers, such as 12.1.0, has Airflow 2.
OLD_RUNTIME = re.compile(r"(?:^|/)astro-runtime:\d+\.\d+\.\d+")
VERSIONS = (
    re.compile(r"(?:^|/)(?:astro-)?runtime:(\d+)\.(\d+)-\d"),
    re.compile(r"(?:^|/)apache/airflow:(?:slim-)?(\d+)\.(\d+)"),
    re.compile(r"^\s*apache-airflow(?:-core)?(?:\[.*\])?\s*==\s*(\d+)\.(\d+)"),
)


@dataclass
class Target:
    """An Astro project, before the copy.

    :param image: that of its Dockerfile, or the line of its packages that says which Airflow it has.
    :param airflow: major and minor version, or None where neither says it.
    :param manifest: the text of pyproject.toml, if it is a project of the Astro CLI 2.
    """

    folder: Path
    image: str
    airflow: tuple[int, int] | None
    requirements: str
    gitignore: str
    manifest: str = ""

    @property
    def packages(self) -> dict[str, str]:
        """The line for each package, of pyproject.toml or of requirements.txt."""
        listed = dependencies(self.manifest, MANIFEST) if self.manifest else None
        return by_package(self.requirements.removeprefix("\ufeff").splitlines() if listed is None else listed)

    @property
    def packages_file(self) -> str:
        """The file that lists them."""
        return MANIFEST if self.manifest else "requirements.txt"


def by_package(lines: Iterable[str]) -> dict[str, str]:
    """Return the line for each package."""
    return {name: line.strip() for line in lines if (name := package(line))}


def read_target(folder: Path) -> Target:
    """Read what a copy depends on.

    :raises CopyError: the folder is not an Astro project, or is this one, or a file cannot be read.
    """
    if folder.resolve() == PROJECT:
        raise CopyError(f"{folder} is this project itself. Name the folder of another one.")
    manifest = read_text(folder / MANIFEST).removeprefix("\ufeff")
    listed = dependencies(manifest, f"{folder / MANIFEST}") if manifest else None
    if listed is not None and (folder / "dags").is_dir():
        airflow = next((line for line in listed if _airflow(line)), "its pyproject.toml")
        # A Dockerfile that such a project has kept installs the requirements.txt beside it.
        kept = read_text(folder / "requirements.txt") if (folder / "Dockerfile").is_file() else ""
        return Target(folder, airflow, _airflow(airflow), kept, read_text(folder / ".gitignore"), manifest)
    if not (folder / "dags").is_dir() or not (folder / "Dockerfile").is_file():
        raise CopyError(f"{folder} is not an Astro project: no dags/ or no Dockerfile. `astro dev init` makes one.")
    image = _image(read_text(folder / "Dockerfile").removeprefix("\ufeff"))
    requirements = read_text(folder / "requirements.txt")
    said_by = next((text for text in (image, *requirements.splitlines()) if _airflow(text)), image)
    return Target(folder, said_by, _airflow(said_by), requirements, read_text(folder / ".gitignore"))


def read_text(path: Path) -> str:
    """Read a file of the target with its line endings; one that is missing is empty.

    :raises CopyError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8, at byte {error.start}"
        raise CopyError(f"{path} cannot be read: {reason}.") from error


def choose_sdk(target: Target) -> str:
    """Choose the package of the AI SDK: that of the target, or else the one for its Airflow.

    :raises CopyError: its Airflow is too old or unknown, or its SDK does not run on it.
    """
    named = [sdk for sdk in SDKS if sdk in target.packages]
    here = f"{target.folder} is on Airflow {'.'.join(map(str, target.airflow or ()))} ({target.image})"
    if target.airflow and target.airflow < (3, 0):
        raise CopyError(f"{target.folder} is on Airflow 2 ({target.image}). The patterns need Airflow 3.1 or later.")
    if target.airflow and target.airflow < OLDEST_AIRFLOW:
        raise CopyError(f"{here}. The patterns need Airflow 3.1 or later.")
    if len(named) > 1:
        raise CopyError(f"{target.folder}/{target.packages_file} has two AI SDKs, {' and '.join(named)}. Remove one.")
    if target.airflow and target.airflow > NEWEST_FOR_AIRFLOW_AI_SDK:
        if AIRFLOW_AI_SDK in named:
            raise CopyError(
                f"{here}, which does not start with {AIRFLOW_AI_SDK}. Replace that with {COMMON_AI} in its "
                f"{target.packages_file}."
            )
        named = [COMMON_AI]
    if not named and not target.airflow:
        where = target.packages_file if target.manifest else f"The image {target.image}"
        raise CopyError(
            f"{where} of {target.folder} does not say which Airflow it has. Add the AI SDK to "
            f"its {target.packages_file}: {AIRFLOW_AI_SDK} for Airflow 3.1, {COMMON_AI} for a later one."
        )
    available = pins_by_sdk()
    if named and named[0] not in available:
        raise CopyError(f"{target.folder} uses {named[0]}; this project supports only {', '.join(available)}.")
    return named[0] if named else next(iter(available))


def what_is_shadowed(files: list[Path], folder: Path) -> Iterator[str]:
    """Name each module of the target that clashes with a package of the pattern, and each package with a module."""
    modules = [file for file in files if file.suffix == ".py"]
    for ours in sorted({parent for file in modules for parent in file.parents if parent.parts}):
        if (folder / ours).with_suffix(".py").exists():
            yield f"{ours}.py of the project and the package {ours}/ of the pattern have the same name"
    for ours in modules:
        theirs = ours.with_suffix("")
        if any((folder / theirs).rglob("*.py")):
            yield f"the package {theirs}/ of the project and {ours} of the pattern have the same name"
    for theirs in (Path("dags", "include"), Path("plugins", "include")):
        if (folder / theirs).with_suffix(".py").exists() or any((folder / theirs).rglob("*.py")):
            yield f"{theirs} of the project and the package include/ of the pattern have the same name"


def same_dag_id(dag: Path, folder: Path) -> Iterator[str]:
    """Name each other file of the target in which a DAG of the file `dag` (of this project) is defined too."""
    ours = _dag_ids(PROJECT / dag)
    for theirs in sorted((folder / "dags").rglob("*.py")):
        if theirs != folder / "dags" / dag.name:
            for dag_id in sorted(ours & _dag_ids(theirs)):
                yield f"the DAG {dag_id} is in {theirs.relative_to(folder)} already"


def _image(dockerfile: str) -> str:
    """The image that the last stage is built from."""
    arguments: dict[str, str] = dict(ARGUMENT.findall(dockerfile))
    stages: dict[str, str] = {}
    image = ""
    for name, alias in FROM.findall(dockerfile):
        name = re.sub(r"\$\{?(\w+)(?::?-([^}]*))?\}?", lambda match: arguments.get(match[1]) or match[2] or "", name)
        image = stages.get(name, name)
        stages[alias or name] = image
    return image


def _airflow(text: str) -> tuple[int, int] | None:
    """The version of Airflow that an image or a line of requirements.txt has."""
    if OLD_RUNTIME.search(text):
        return (2, 0)
    match = next((match for version in VERSIONS if (match := version.search(text))), None)
    return (int(match[1]), int(match[2])) if match else None


def _dag_ids(file: Path) -> set[str]:
    """The DAG ids that are written in a file; none if it cannot be parsed."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    found = {
        id_ for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node) == "DAG" for id_ in _ids(node)
    }
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for decorator in (node for node in function.decorator_list if _name(node) == "dag"):
            found |= set(_ids(decorator)) or {function.name}
    return found


def _name(node: ast.expr) -> str:
    called = node.func if isinstance(node, ast.Call) else node
    return getattr(called, "attr", getattr(called, "id", ""))


def _ids(node: ast.expr) -> list[str]:
    """The DAG id among the arguments of a call."""
    if not isinstance(node, ast.Call):
        return []
    values = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "dag_id")]
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
