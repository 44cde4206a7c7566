"""`make` with an environment that is broken or was made by something else, in a folder with a fake Python."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROJECT

pytestmark = pytest.mark.one_stack

# A fake: it makes environments with itself in them, and installs nothing.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *"-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/uv; echo made >> made;;
esac
"""
MARKER = ".venv/installed-from-lock"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that has the Makefile, and an environment that it made."""
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("airflow-ai-sdk==1\n")
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "airflow-ai-sdk.lock").write_text("lancedb==1\nwordllama==1\n")
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    make(tmp_path, MARKER)
    (tmp_path / "made").unlink()
    (tmp_path / ".venv" / "stale").touch()
    return tmp_path


def make(folder: Path, *arguments: str, path: str = os.environ["PATH"]) -> str:
    command = ["make", *arguments, f"PYTHON={folder / 'python'}"]
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def lose_the_python(folder: Path) -> None:
    (folder / ".venv" / "bin" / "python").unlink()
    (folder / ".venv" / "bin" / "python").symlink_to(folder / "gone")


def take_it_over(folder: Path) -> None:
    """As `uv venv --allow-existing` and another `python -m venv` do: the files of the environment are written anew."""
    config = folder / ".venv" / "pyvenv.cfg"
    config.write_text("uv = 0.13.9\n")
    later = (folder / MARKER).stat().st_mtime + 10
    os.utime(config, (later, later))


def interrupt_the_install(folder: Path) -> None:
    (folder / MARKER).unlink()


@pytest.mark.parametrize("break_it", [lose_the_python, take_it_over, interrupt_the_install])
def test_a_broken_environment_is_made_anew_by_the_next_make(folder, break_it):
    break_it(folder)

    assert "it is made anew" in make(folder, MARKER)
    assert (folder / "made").read_text() == "made\n"
    assert not (folder / ".venv" / "stale").exists()
    (folder / "made").unlink()
    make(folder, MARKER)
    assert not (folder / "made").exists(), "made a third time"


def test_an_environment_that_is_whole_is_kept(folder):
    assert "anew" not in make(folder, MARKER)
    assert (folder / ".venv" / "stale").exists()


def test_of_an_environment_that_is_a_link_only_the_link_is_replaced(folder):
    (folder / ".venv").rename(folder / "shared")
    (folder / ".venv").symlink_to(folder / "shared")
    lose_the_python(folder)

    make(folder, MARKER)
    assert (folder / "shared" / "stale").exists()
    assert not (folder / ".venv").is_symlink()


@pytest.fixture
def running(folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process of the stack, one that goes by another name, as Airflow's API server does, and one with an old id."""
    (folder / ".venv" / "bin" / "part").symlink_to(shutil.which("sleep") or "")
    part = subprocess.Popen([folder / ".venv" / "bin" / "part", "600"], start_new_session=True)
    title = "airflow api_server -- host:127.0.0.1 port:8080"
    server = subprocess.Popen([title, "600"], executable=shutil.which("sleep"), start_new_session=True)
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (folder / ".local").mkdir()
    remembered = {"scheduler": (part.pid, psutil.Process(part.pid).create_time()), "api-server": (server.pid, 1.5)}
    (folder / ".local" / "processes.json").write_text(json.dumps(remembered | {"triggerer": (other.pid, 1.5)}))
    yield [part, server, other]
    for process in (part, server, other):
        process.kill()
        process.wait()


def test_clean_needs_no_python_and_ends_what_runs(folder, running, tmp_path_factory):
    tools = tmp_path_factory.mktemp("tools")
    for name in ("make", "sh", "rm", "grep", "tr", "ps", "test"):
        (tools / name).symlink_to(shutil.which(name) or f"/usr/bin/{name}")
    lose_the_python(folder)

    make(folder, "clean", path=str(tools))

    part, server, other = running
    assert part.wait(60) == server.wait(60) == -signal.SIGTERM
    assert other.poll() is None
    assert not (folder / ".venv").exists()
    assert not (folder / ".local").exists()
