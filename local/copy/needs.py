"""What a pattern needs, read from its code.

That is: the modules of `include` that might be imported at run time, the data beside them that they name, the lines of
requirements.txt for what all of these import, and the connections and settings that they name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

from packaging.utils import canonicalize_name

from local.copy import CopyError
from local.dags import FOLDER, template_dags
from local.environment import PROJECT

AIRFLOW_AI_SDK = "airflow-ai-sdk"
COMMON_AI = "apache-airflow-providers-common-ai"
SDKS = {
    AIRFLOW_AI_SDK: "airflow_ai_sdk",
    COMMON_AI: "airflow.providers.common.ai",
}  # by package, what it is imported as
REQUIREMENTS = ("requirements.txt", "common-ai/requirements.txt")
PACKAGE = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)")
PIN = re.compile(r"[A-Za-z0-9._-]+(\[[^]]*\])?==\S+")
USES_THE_POOL = {"LLM_POOL", "LLM_TASK", "llm_kwargs", "agent_kwargs"}
CONNECTION = re.compile(r"[a-z_]+_default")
SETTING = re.compile(r"GENAI_[A-Z_]+")
# Optional for a pattern, and copied if asked for: by name, the files to start from.
LAYERS = {
    "canary": [
        Path("include/ai/canary.py"),
        Path("include/ai/fallbacks.py"),
        Path("include/ai/usage.py"),
        Path("include/ai/spending.py"),
        Path("dags/operations/canary_report.py"),
    ],
    "fallbacks": [Path("include/ai/fallbacks.py")],
    "limits": [Path("include/ai/account.py")],
    "prices": [Path("include/ai/usage.py"), Path("include/common/prices.py")],
    "rerank": [Path("include/rag/rerank.py")],
    "reuse": [
        Path("include/ai/reuse.py"),
        Path("include/ai/effects.py"),
        Path("dags/operations/forget_answers.py"),
    ],
    "spend": [
        Path("include/ai/usage.py"),
        Path("include/ai/spending.py"),
        Path("plugins/genai_page.py"),
        Path("dags/operations/spend_report.py"),
    ],
    "traces": [
        Path("include/ai/tracing.py"),
        Path("include/ai/usage.py"),
        Path("include/common/spans.py"),
        Path("include/page/trace_link.py"),
        Path("include/traces/chunks.py"),
        Path("include/traces/jobs.py"),
        Path("include/traces/listener.py"),
        Path("plugins/genai_traces.py"),
    ],
    "usage": [Path("include/ai/usage.py")],
}
# Optional modules that come with a layer: by the layer, their name in any folder.
TAKEN_UP = {"spend": "spending"}
# Adds the layers to a model's call, and is copied with any of them.
SEAM = Path("include/ai/layers.py")
# These tests fit any DAG.
TESTS = [Path("tests", "with_scripted_model", name) for name in ("conftest.py", "dag_run.py", "test_copied_dags.py")]
EVERY_DAG_HAS = ("schedule", "params")


@dataclass
class Pattern:
    """A DAG and what it needs; paths are relative to the project."""

    dag: Path
    modules: list[Path]
    data: list[Path]
    requirements: list[str]
    connections: list[str]
    settings: list[str]
    ignored: list[str]
    pool: bool

    @property
    def files(self) -> list[Path]:
        return [self.dag, *self.modules, *self.data, *TESTS]

    @property
    def data_folders(self) -> list[Path]:
        return sorted({Path(*path.parts[:2]) for path in self.data})


class OwnLine(NamedTuple):
    """A line of a DAG's file to change after a copy: its number, what it defines, and a note."""

    number: int
    name: str
    note: str


def dag_file(name: str) -> Path:
    """Find the file of the DAG `name`.

    :raises CopyError: there is none.
    """
    files = {path.stem: path for path in sorted(FOLDER.rglob("*.py"))} | template_dags()
    found = {dag_id: path.relative_to(PROJECT) for dag_id, path in files.items()}
    if name not in found:
        raise CopyError(f"There is no DAG {name!r}. There are: {', '.join(found)}.")
    return found[name]


def pins_by_sdk() -> dict[str, list[str]]:
    """Read the pins of requirements.txt for each AI SDK that this project has pins for, its own SDK first."""
    found: dict[str, list[str]] = {}
    for name in REQUIREMENTS:
        lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
        pins = [match[0] for line in lines if (match := PIN.match(line))]
        found |= {sdk: pins for sdk in SDKS if sdk in map(package, pins)}
    return found


def analyse(name: str, sdk: str, layers: Sequence[str] = ()) -> Pattern:
    """Find out what the DAG `name` needs, from its code and that of all its imports.

    :param sdk: the package of the AI SDK. Modules for another one are left out.
    :param layers: the optional layers to add, by their names in LAYERS.
    :raises CopyError: there is no such DAG, or no such layer.
    """
    if unknown := [layer for layer in layers if layer not in LAYERS]:
        raise CopyError(f"There is no layer {unknown[0]!r}. There are: {', '.join(LAYERS)}.")
    dag = dag_file(name)
    waiting = [dag, *(file for layer in layers for file in LAYERS[layer])]
    trees = {file: _parse(file) for file in waiting}
    taken_up = frozenset(TAKEN_UP[layer] for layer in layers if layer in TAKEN_UP)
    while waiting:
        for module in _modules_of_include(trees[waiting.pop()], taken_up):
            for path in _files_of(module):
                if path not in trees and not _is_for_another(sdk, tree := _parse(path)):
                    trees[path] = tree
                    waiting.append(path)
        if not waiting and SEAM not in trees and _has_a_layer(trees):
            trees[SEAM] = _parse(SEAM)
            waiting.append(SEAM)
    texts = {text for tree in trees.values() for text in _texts(tree)}
    gitignore = (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines()
    return Pattern(
        dag=dag,
        modules=sorted(path for path in trees if path != dag),
        data=sorted({path for module, tree in trees.items() for path in _data_of(module, tree)}),
        requirements=_requirements({module for tree in trees.values() for module in _imports(tree)}, sdk),
        connections=sorted(text for text in texts if CONNECTION.fullmatch(text)),
        settings=sorted(text for text in texts if SETTING.fullmatch(text)),
        ignored=[line for line in gitignore if line.startswith("include/") and Path(line).name in texts],
        pool=bool(USES_THE_POOL & {node.id for node in ast.walk(trees[dag]) if isinstance(node, ast.Name)}),
    )


def own_lines(pattern: Pattern) -> list[OwnLine]:
    """Find what in the DAG's file is this project's own, in the order of its lines."""
    found: dict[int, OwnLine] = {}

    def add(node: ast.stmt | ast.keyword, name: str, note: str = "") -> None:
        found[node.lineno] = OwnLine(node.lineno, name, note)

    for node in ast.walk(_parse(pattern.dag)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            add(node, node.targets[0].id)
        elif isinstance(node, ast.ClassDef):
            add(node, node.name, ", what the model is asked to return")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("include.sample"):
            add(node, "the sample data", ": put your own rows here")
        elif isinstance(node, ast.ImportFrom) and any(alias.name.endswith("_PROMPT") for alias in node.names):
            prompts = ", ".join(alias.name for alias in node.names if alias.name.endswith("_PROMPT"))
            add(node, prompts, f", of {(node.module or '').replace('.', '/')}.py")
        elif isinstance(node, ast.keyword) and node.arg in EVERY_DAG_HAS:
            add(node, node.arg)
    return [found[number] for number in sorted(found)]


def package(requirement: str) -> str | None:
    """Return the package that a line of requirements.txt names, normalized as pip does; None if it names none."""
    match = PACKAGE.match(requirement)
    return canonicalize_name(match[1]) if match else None


def _parse(path: Path) -> ast.Module:
    return _parsed(PROJECT / path)


@cache  # the table of the docs covers all DAGs, which share modules
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """As `ast.walk`, without what only a type checker imports."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for_types = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        waiting += node.orelse if for_types else ast.iter_child_nodes(node)  # type: ignore[attr-defined]


def _modules(node: ast.AST) -> Iterator[str]:
    """Every module that an import might import: `from a import b` gives `a` and `a.b`, as b may be one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _imports(tree: ast.Module) -> set[str]:
    return {module for node in _walk(tree) for module in _modules(node)}


def _is_for_another(sdk: str, tree: ast.Module) -> bool:
    """Whether a module cannot be imported without an AI SDK that is not this one."""
    others = [module for name, module in SDKS.items() if name != sdk]
    imported = [module for node in tree.body for module in _modules(node)]
    return any(f"{module}.".startswith(f"{other}.") for module in imported for other in others)


@cache
def _modules_of_include(tree: ast.Module, taken_up: frozenset[str]) -> list[str]:
    """The modules of `include` that are imported, or named in a string, such as the path of a trigger.

    Optional layers, imported in a `try` that continues without them, are left out unless they have one of these names.
    """
    left_out = {module for module in _optional(tree) if not taken_up & set(module.split("."))}
    named = (_imports(tree) | _texts(tree)) - left_out
    return [module for module in named if re.fullmatch(r"include(\.\w+)+", module)]


def _optional(tree: ast.Module) -> Iterator[str]:
    """The modules that are imported in a `try` that continues without them."""
    for node in _walk(tree):
        if isinstance(node, ast.Try) and any(_catches_import_error(handler) for handler in node.handlers):
            for statement in node.body:
                yield from _modules(statement)


def _has_a_layer(files: Iterable[Path]) -> bool:
    """Whether one of these is a layer that the seam adds."""
    if not (PROJECT / SEAM).exists():
        return False
    layers = {path for module in _optional(_parse(SEAM)) for path in _files_of(module) if path.name != "__init__.py"}
    return not layers.isdisjoint(files)


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else set()
    return bool(names & {"ImportError", "ModuleNotFoundError"})


@cache
def _texts(tree: ast.Module) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _files_of(module: str) -> Iterator[Path]:
    """The files of a module and of its packages; for a name that is not a module, only those of its packages."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        base = Path(*parts[:end])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if (PROJECT / path).exists():
                yield path


def _data_of(module: Path, tree: ast.Module) -> Iterator[Path]:
    """The data files and folders beside or above a module that it names, if it uses `__file__`."""
    if not any(isinstance(node, ast.Name) and node.id == "__file__" for node in ast.walk(tree)):
        return
    names = [text for text in _texts(tree) if re.fullmatch(r"\w[\w.-]*", text)]
    folders = [PROJECT / folder for folder in module.parents if folder.parts]
    for named in (folder / name for folder in folders for name in names):
        if not named.exists() or (named / "__init__.py").exists():
            continue
        found = named.rglob("*") if named.is_dir() else [named]
        files = (path for path in found if path.is_file() and path.suffix not in (".py", ".pyc"))
        yield from (path.relative_to(PROJECT) for path in files)


def _requirements(imported: Iterable[str], sdk: str) -> list[str]:
    """The pins for these modules."""
    distributions = _distributions()
    names: set[str] = set()
    for module in imported:
        top = module.split(".")[0]
        if module.startswith("airflow.providers."):
            parts = module.split(".")[2:]
            names |= {f"apache-airflow-providers-{'-'.join(parts[:end])}" for end in range(1, len(parts) + 1)}
        elif top != "airflow":  # which all providers share
            names |= {top, *distributions.get(top, [])}
    needed = set(map(canonicalize_name, names))
    return [pin for pin in pins_by_sdk()[sdk] if package(pin) in needed]


_distributions = cache(packages_distributions)  # it reads the files of every installed package
