"""The project's files as Git would list them, without Git: a ZIP or a template has none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from tests.conftest import PROJECT


def project_files(project: Path = PROJECT) -> Iterator[Path]:
    """Each file below the project that .gitignore does not leave out, relative to it."""
    ignored = GitIgnoreSpec.from_lines((project / ".gitignore").read_text().splitlines())
    for folder, folders, files in os.walk(project):
        here = Path(folder).relative_to(project)
        # A worktree's .venv is a link, which Git takes for a file.
        kept = [name for name in folders if name != ".git" and not ignored.match_file(f"{(here / name).as_posix()}/")]
        folders[:] = [name for name in kept if not (Path(folder) / name).is_symlink()]
        for name in sorted(files):
            if name != ".git" and not ignored.match_file((here / name).as_posix()):
                yield here / name
