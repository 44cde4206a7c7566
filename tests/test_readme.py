"""What the README says can be done and found."""

from __future__ import annotations

import re
import subprocess

from tests.conftest import PROJECT, dag_files

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=PROJECT, check=True, capture_output=True, text=True).stdout


def test_every_make_target_it_names_exists_and_is_in_make_help():
    targets = set(re.findall(r"make ([a-z]+)", README)) - {"help"}
    assert {"demo", "test", "start", "stop"} <= targets
    listed = set(re.findall(r"^  make ([a-z]+)", make("help"), re.MULTILINE))
    assert targets <= listed
    for target in targets:
        make("--dry-run", target)


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (PROJECT / link).exists(), link


def test_every_dag_is_in_its_table():
    for path in dag_files():
        assert f"[`{path.stem}`]({path.relative_to(PROJECT)})" in README
