"""Put a pattern into an Astro project: all of it or nothing, and never over what the project has changed."""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from local.copy import CopyError
from local.copy.manifest import with_dependencies
from local.copy.needs import Pattern, analyse, package
from local.copy.target import Target, by_package, choose_sdk, read_target, read_text, same_dag_id, what_is_shadowed
from local.environment import PROJECT

MANIFEST = ".copied-patterns.json"
NEW, UPDATED, UNCHANGED, KEPT = "new", "unchanged, updated", "up to date", "changed by you, kept"


class Origin(BaseModel):
    """Where a copied file came from, and the checksum that it had then (without CR, which Git may add)."""

    model_config = ConfigDict(extra="forbid")
    file: str
    version: str
    sha256: str


class Manifest(BaseModel):
    """The file MANIFEST of a project to which patterns were copied: what came from where, by path."""

    model_config = ConfigDict(extra="forbid")
    project: str
    files: dict[str, Origin]


class Placed(NamedTuple):
    """A file of the pattern in the target; both paths are relative to their project."""

    source: Path
    path: Path
    state: str
    diff: str = ""


@dataclass
class Copied:
    """What a copy did. `target` is the state before it."""

    pattern: Pattern
    target: Target
    sdk: str
    files: list[Placed]
    ignored: list[str]


def copy(name: str, folder: Path, layers: Sequence[str] = ()) -> Copied:
    """Copy the DAG `name` and what it needs, and add what is missing to its packages and .gitignore.

    A file that the project has changed stays: MANIFEST records what was copied, so that a later copy notices.

    :param layers: the optional layers to add, by their names in LAYERS.
    :raises CopyError: there is no such DAG or layer, or something in the target is in the way. Nothing was written.
    """
    target = read_target(folder)
    sdk = choose_sdk(target)
    pattern = analyse(name, sdk, layers)
    placed = {(Path("dags", file.name) if file.parts[0] == "dags" else file): file for file in pattern.files}
    in_the_way = [
        *what_is_shadowed(list(placed), folder),
        *same_dag_id(pattern.dag, folder),
        *_of_the_wrong_kind(
            [*placed, *map(Path, ("requirements.txt", "pyproject.toml", ".gitignore", MANIFEST))], folder
        ),
    ]
    manifest = _read_manifest(folder)
    files = [] if in_the_way else [_place(source, path, folder, manifest) for path, source in placed.items()]
    in_the_way += [
        f"{file.path} is a file of the project: the pattern has a different file of this name"
        for file in files
        if not file.state
    ]
    if in_the_way:
        raise CopyError(f"Nothing was copied to {folder}, because:\n  " + "\n  ".join(in_the_way))
    ignored_there = {line.strip().strip("/") for line in target.gitignore.splitlines()}
    ignored = [*pattern.ignored, *[".env"] * bool(pattern.connections or pattern.settings)]
    ignored = [line for line in ignored if line.strip("/") not in ignored_there]
    missing = [pin for pin in pattern.requirements if package(pin) not in target.packages]
    contents = {file.path: _content(file, folder) for file in files if file.state in (NEW, UPDATED)}
    if target.manifest and missing:
        where = f"{folder / target.packages_file}"
        contents[Path(target.packages_file)] = with_dependencies(target.manifest, missing, where).encode()
        in_image = by_package(target.requirements.splitlines())
        missing = [pin for pin in pattern.requirements if package(pin) not in in_image] if target.requirements else []
    if missing:
        contents[Path("requirements.txt")] = _with_lines(target.requirements, missing)
    if ignored:
        contents[Path(".gitignore")] = _with_lines(target.gitignore, ignored)
    contents[Path(MANIFEST)] = _with_files(manifest, files).model_dump_json(indent=2).encode() + b"\n"
    _write({folder / path: content for path, content in contents.items()})
    return Copied(pattern, target, sdk, files, ignored)


def _of_the_wrong_kind(files: list[Path], folder: Path) -> Iterator[str]:
    """Name each path where the pattern needs a file, or a folder, and the target has something else."""
    folders = {parent for path in files for parent in path.parents}
    for path in sorted({*files, *folders}):
        there = folder / path
        if os.path.lexists(there) and not (there.is_dir() if path in folders else there.is_file()):
            yield f"{path} is not a {'folder' if path in folders else 'file'}"


def _place(source: Path, path: Path, folder: Path, manifest: Manifest) -> Placed:
    """Compare a file with that of the target; the state is empty if the target's was not copied from here."""
    if not (folder / path).exists():
        return Placed(source, path, NEW)
    ours = (PROJECT / source).read_bytes()
    try:
        theirs = (folder / path).read_bytes()
    except OSError as error:
        raise CopyError(f"{folder / path} cannot be read: {error.strerror}.") from error
    if _checksum(ours) == _checksum(theirs) or (path.name == "__init__.py" and not _has_code(ours)):
        return Placed(source, path, UNCHANGED)
    origin = manifest.files.get(path.as_posix())
    if not origin:
        return Placed(source, path, "")
    if origin.sha256 == _checksum(theirs):
        return Placed(source, path, UPDATED)
    return Placed(source, path, KEPT, _diff(path, theirs, ours) if path.suffix == ".py" else "")


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def _has_code(module: bytes) -> bool:
    return any(not isinstance(statement, ast.Expr) for statement in ast.parse(module).body)


def _diff(path: Path, theirs: bytes, ours: bytes) -> str:
    mine, new = (content.decode(errors="replace").splitlines() for content in (theirs, ours))
    return "\n".join(difflib.unified_diff(mine, new, f"{path} (yours)", f"{path} (the pattern's)", lineterm=""))


def _content(file: Placed, folder: Path) -> bytes:
    """The new content of the file, with the line endings that it has."""
    ours = (PROJECT / file.source).read_bytes()
    had_crlf = file.state == UPDATED and b"\r\n" in (folder / file.path).read_bytes()
    return ours.replace(b"\n", b"\r\n") if had_crlf else ours


def _with_lines(text: str, lines: list[str]) -> bytes:
    """The text with these lines added, in its own line endings."""
    end = "\r\n" if "\r\n" in text else "\n"
    start = text + end if text and not text.endswith("\n") else text
    return (start + "".join(line + end for line in lines)).encode()


def _read_manifest(folder: Path) -> Manifest:
    text = read_text(folder / MANIFEST)
    if not text:
        return Manifest(project=_git("remote", "get-url", "origin") or PROJECT.name, files={})
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CopyError(
            f"{folder / MANIFEST}{', ' * bool(place)}{place}: {first['msg']}. Restore it, or delete it."
        ) from error


def _with_files(manifest: Manifest, files: list[Placed]) -> Manifest:
    """The manifest with what was copied now. A file that the project has changed keeps its entry."""
    version = _git("describe", "--always", "--dirty", "--tags") or "unknown"
    found = dict(manifest.files)
    for file in files:
        origin = Origin(
            file=file.source.as_posix(), version=version, sha256=_checksum((PROJECT / file.source).read_bytes())
        )
        old = found.get(file.path.as_posix())
        if file.state != KEPT and not (old and old.sha256 == origin.sha256):
            found[file.path.as_posix()] = origin
    return Manifest(project=manifest.project, files=dict(sorted(found.items())))


def _git(*arguments: str) -> str:
    """Git's answer about this project, without a login in a URL; empty if there is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True)  # noqa: S607
    except FileNotFoundError:
        return ""
    said = done.stdout.strip() if done.returncode == 0 else ""
    url = urlsplit(said)
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl() if url.netloc else said


def _write(contents: dict[Path, bytes]) -> None:
    """Write all of these files or none: first next to their places, then into them.

    :raises CopyError: one cannot be written; nothing has changed then.
    """
    contents = {path.resolve(): content for path, content in contents.items()}
    before = {path: path.read_bytes() if path.exists() else None for path in contents}
    changed = [path for path, content in contents.items() if content != before[path]]
    beside = {path: path.with_name(f".{path.name}.copying") for path in changed}
    folders: list[Path] = []
    placed: list[Path] = []
    try:
        for path, new in beside.items():
            for folder in [folder for folder in reversed(path.parents) if not folder.exists()]:
                folder.mkdir()
                folders.append(folder)
            new.write_bytes(contents[path])
            if before[path] is not None:
                shutil.copymode(path, new)
        for path, new in beside.items():
            new.replace(path)
            placed.append(path)
    except BaseException as error:
        for path in placed:
            path.write_bytes(before[path] or b"") if before[path] is not None else path.unlink()
        for new in beside.values():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                new.unlink()
        for folder in reversed(folders):
            folder.rmdir()
        if isinstance(error, OSError):
            raise CopyError(f"Nothing was copied: {error.filename} cannot be written: {error.strerror}.") from error
        raise
