"""Copy a DAG into another Astro project, with the modules, data and packages that it needs. `make copy` runs it.

What is needed is read from the code: the imports of `include`, wherever they stand, the data beside the modules that
name it, and the lines of requirements.txt for what all of these import.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

from local.dags import FOLDER, template_dags
from local.environment import PROJECT

REQUIREMENT = re.compile(r"([A-Za-z0-9-]+)(\[[^]]*\])?==\S+")
USES_THE_POOL = {"LLM_POOL", "LLM_TASK", "llm_kwargs", "agent_kwargs"}
AI_SDKS = {"airflow-ai-sdk", "apache-airflow-providers-common-ai"}
CONNECTION = re.compile(r"[a-z_]+_default")
EVERY_DAG_HAS = ("dag_display_name", "schedule", "params")


class CopyError(Exception):
    """The pattern cannot be copied; the message says why."""


@dataclass
class Pattern:
    """A DAG and what it needs; paths are relative to the project."""

    dag: Path
    modules: list[Path]
    data: list[Path]
    requirements: list[str]
    connections: list[str]
    pool: bool

    @property
    def files(self) -> list[Path]:
        return [self.dag, *self.modules, *self.data]


class OwnLine(NamedTuple):
    """A line of a DAG's file that whoever copies it will want to change: its number, what it defines, and what for."""

    number: int
    name: str
    note: str


def dag_file(name: str) -> Path:
    """The file of the DAG `name`.

    :raises CopyError: there is none.
    """
    files = {path.stem: path for path in sorted(FOLDER.rglob("*.py"))} | template_dags()
    found = {dag_id: path.relative_to(PROJECT) for dag_id, path in files.items()}
    if name not in found:
        raise CopyError(f"There is no DAG {name!r}. There are: {', '.join(found)}.")
    return found[name]


def analyse(name: str) -> Pattern:
    """What the DAG `name` needs, by its code and that of all it imports."""
    dag = dag_file(name)
    trees = {dag: _parse(dag)}
    waiting = [dag]
    while waiting:
        for module in _modules_of_include(trees[waiting.pop()]):
            for path in _files_of(module):
                if path not in trees:
                    trees[path] = _parse(path)
                    waiting.append(path)
    imported = {module for tree in trees.values() for module in _imports(tree)}
    texts = {text for tree in trees.values() for text in _texts(tree)}
    return Pattern(
        dag=dag,
        modules=sorted(path for path in trees if path != dag),
        data=sorted({path for module, tree in trees.items() for path in _data_of(module, tree)}),
        requirements=_requirements(imported),
        connections=sorted(text for text in texts if CONNECTION.fullmatch(text)),
        pool=bool(USES_THE_POOL & {node.id for node in ast.walk(trees[dag]) if isinstance(node, ast.Name)}),
    )


def copy(pattern: Pattern, target: Path) -> list[Path]:
    """Copy the files, add what is missing to the requirements, and return what was written.

    :raises CopyError: the target is no Astro project, or has a file of the same name with another content. Then
        nothing was written.
    """
    requirements = target / "requirements.txt"
    if not (target / "dags").is_dir() or not (target / "Dockerfile").exists():
        raise CopyError(f"{target} is no Astro project: it has no dags/ or no Dockerfile. `astro dev init` makes one.")
    placed = {path: target / ("dags" if path == pattern.dag else path.parent) / path.name for path in pattern.files}
    in_the_way = [str(new) for path, new in placed.items() if new.exists() and not _same(PROJECT / path, new)]
    if in_the_way:
        raise CopyError("These files are there, and are different. Move them away first: " + ", ".join(in_the_way))
    for path, new in placed.items():
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / path, new)
    there = requirements.read_text(encoding="utf-8") if requirements.exists() else ""
    names = {match[1].lower() for line in there.split("\n") if (match := re.match(r"\s*([A-Za-z0-9-]+)", line))}
    missing = [line for line in pattern.requirements if _name(line) not in names]
    if missing:
        start = there if there.endswith("\n") or not there else there + "\n"
        requirements.write_text(start + "\n".join(missing) + "\n", encoding="utf-8")
    return list(placed.values())


def own_lines(pattern: Pattern) -> list[OwnLine]:
    """What in the DAG's file is this project's own, in the order of its lines."""
    found: dict[int, OwnLine] = {}

    def add(node: ast.stmt | ast.keyword, name: str, note: str = "") -> None:
        found[node.lineno] = OwnLine(node.lineno, name, note)

    for node in ast.walk(_parse(pattern.dag)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            add(node, node.targets[0].id)
        elif isinstance(node, ast.ClassDef):
            add(node, node.name, ", what the model is asked to return")
        elif isinstance(node, ast.ImportFrom) and node.module == "include.sample.data":
            add(node, "the sample data", ": put your own rows here")
        elif isinstance(node, ast.ImportFrom) and any(alias.name.endswith("_PROMPT") for alias in node.names):
            prompts = ", ".join(alias.name for alias in node.names if alias.name.endswith("_PROMPT"))
            add(node, prompts, f", of {(node.module or '').replace('.', '/')}.py")
        elif isinstance(node, ast.keyword) and node.arg in EVERY_DAG_HAS:
            add(node, node.arg)
    return [found[number] for number in sorted(found)]


def _data_folders(pattern: Pattern) -> list[Path]:
    return sorted({Path(*path.parts[:2]) for path in pattern.data})


def _parse(path: Path) -> ast.Module:
    return ast.parse((PROJECT / path).read_text(encoding="utf-8"))


def _imports(tree: ast.Module) -> Iterator[str]:
    """Every module that might be imported: `from a import b` gives `a` and `a.b`, as b may be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules_of_include(tree: ast.Module) -> Iterator[str]:
    """As `_imports`, and what is named in a string, such as the path of a trigger or of a function."""
    for module in (*_imports(tree), *_texts(tree)):
        if re.fullmatch(r"include(\.\w+)+", module):
            yield module


def _texts(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _files_of(module: str) -> Iterator[Path]:
    """The files of a module and of the packages it is in; of what is no module, only those of its packages."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        base = Path(*parts[:end])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if (PROJECT / path).exists():
                yield path


def _data_of(module: Path, tree: ast.Module) -> Iterator[Path]:
    """The data files beside a module that it names, whole folders included, if it looks beside itself at all."""
    if not any(isinstance(node, ast.Name) and node.id == "__file__" for node in ast.walk(tree)):
        return
    folder = (PROJECT / module).parent
    for text in _texts(tree):
        named = folder / text if re.fullmatch(r"\w[\w.-]*", text) else folder
        if named == folder or not named.exists() or (named / "__init__.py").exists():
            continue
        found = named.rglob("*") if named.is_dir() else [named]
        files = (path for path in found if path.is_file() and path.suffix not in (".py", ".pyc"))
        yield from (path.relative_to(PROJECT) for path in files)


def _requirements(imported: Iterable[str]) -> list[str]:
    """The lines of requirements.txt for these modules, without their comments."""
    distributions = _distributions()
    names = set()
    for module in imported:
        top = module.split(".")[0]
        if module.startswith("airflow.providers."):
            parts = module.split(".")[2:]
            names |= {f"apache-airflow-providers-{'-'.join(parts[:end])}" for end in range(1, len(parts) + 1)}
        elif top != "airflow":  # which all providers share
            names |= {top.replace("_", "-"), *(name.lower() for name in distributions.get(top, []))}
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").split("\n")
    pins = [match[0] for line in lines if (match := REQUIREMENT.match(line))]
    return [pin for pin in pins if _name(pin).replace("_", "-") in {name.replace("_", "-") for name in names}]


_distributions = cache(packages_distributions)  # it reads what every installed package brings


def _name(requirement: str) -> str:
    match = REQUIREMENT.match(requirement)
    return match[1].lower() if match else requirement


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _example_of(connection: str) -> str | None:
    """The line of .env.example that sets this connection, if there is one."""
    lines = (PROJECT / ".env.example").read_text(encoding="utf-8").split("\n")
    return next((line[1:] for line in lines if line.startswith(f"#AIRFLOW_CONN_{connection.upper()}=")), None)


def report(pattern: Pattern, target: Path, written: list[Path]) -> str:
    """What was copied, and what is left to do."""
    there = (target / "requirements.txt").read_text(encoding="utf-8")
    lines = [f"Copied {len(written)} files to {target}:", *(f"  {path.relative_to(target)}" for path in written)]
    lines += ["", "Packages, in its requirements.txt:"]
    for pin in pattern.requirements:
        lines.append(f"  {pin}" + ("" if pin in there else "  (it has another version: see that they agree)"))
    if pattern.connections:
        lines += ["", "Connections to set, in .env or in the deployment (.env.example of this project tells more):"]
        lines += [f"  {_example_of(connection) or connection}" for connection in pattern.connections]
    if pattern.pool:
        lines += ["", "The pool llm_pool, from airflow_settings.yaml: without it no task that calls a model starts."]
    own = [f"dags/{pattern.dag.name}:{line.number}: {line.name}{line.note}" for line in own_lines(pattern)]
    own += [f"{folder}/: sample data" for folder in _data_folders(pattern)]
    lines += ["", "To make it yours:", *(f"  {line}" for line in own)]
    return "\n".join(lines)


def needs(pattern: Pattern) -> str:
    """The pattern's section in docs/copying-a-pattern.md: `report` without versions, examples and numbers of lines."""
    files = [pattern.dag, *(path for path in pattern.modules if path.name != "__init__.py")]
    packages = [_name(pin) for pin in pattern.requirements]
    bullets = {
        "files": [f"`{path}`" for path in files],
        "data": [f"`{folder}/`" for folder in _data_folders(pattern)],
        "packages": sorted({"the AI SDK" if name in AI_SDKS else f"`{name}`" for name in packages}),
        "to set": [*(f"`{name}`" for name in pattern.connections), *["the pool `llm_pool`"] * pattern.pool],
        "yours": [line.name for line in own_lines(pattern) if line.name not in EVERY_DAG_HAS],
    }
    told = [f"- {name}: {', '.join(values)}" for name, values in bullets.items() if values]
    return "\n".join([f"### {pattern.dag.stem}", "", *told, ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="make copy PATTERN=... TO=...", description=__doc__)
    parser.add_argument("pattern", help="the DAG's id, which is its file's name")
    parser.add_argument("to", type=Path, help="the folder of an Astro project")
    arguments = parser.parse_args()
    try:
        pattern = analyse(arguments.pattern)
        written = copy(pattern, arguments.to)
    except CopyError as error:
        sys.exit(str(error))
    print(report(pattern, arguments.to, written))


if __name__ == "__main__":
    main()
