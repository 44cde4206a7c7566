"""Ways to read and name data that break on some of it are not used. (ruff can ban functions, but no methods.)"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import PROJECT

pytestmark = pytest.mark.one_stack

# local/copy reads code and settings, whose lines end as Python and pip see it.
PRODUCT = [
    path
    for folder in ("dags", "include", "plugins", "local")
    for path in sorted((PROJECT / folder).rglob("*.py"))
    if not path.is_relative_to(PROJECT / "local" / "copy")
]
# By method: why not, and what instead.
BANNED = {
    "splitlines": 'cuts at U+2028, U+0085 and others, which JSON and CSV may hold: json_lines.read_lines, split("\\n")',
    "as_uri": "escapes what fsspec takes as it stands: f'file://{path}'",
    "readline": "has no limit on object storage: json_lines.read_lines",
}
IN_DAGS_AND_INCLUDE = {
    "read_text": "depends on the machine's encoding and changes line ends: read_bytes",
    "write_text": "leaves half a file when it is killed: storage.write_artifact",
    "ObjectStoragePath": "cannot be opened in an event loop: storage_path, stored_file, local_file",
}
# It is what the others are told to use.
ALLOWED = {("include/common/json_lines.py", "readline"), ("include/common/storage.py", "ObjectStoragePath")}


def banned_calls(path: Path) -> list[str]:
    name = path.relative_to(PROJECT).as_posix()
    banned = BANNED | (IN_DAGS_AND_INCLUDE if name.startswith(("dags/", "include/")) else {})
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            is_own = called == "read_text" and isinstance(node.func, ast.Name)  # include.rag.formats has one
            if called in banned and (name, called) not in ALLOWED and not is_own:
                found.append(f"{name}:{node.lineno}: {called}() {banned[called]}")
    return found


def test_no_data_is_read_or_named_in_a_way_that_breaks_on_some_of_it():
    assert [call for path in PRODUCT for call in banned_calls(path)] == []


@pytest.mark.parametrize("method", [*BANNED, *IN_DAGS_AND_INCLUDE])
def test_the_rule_finds_each_of_them(tmp_path, monkeypatch, method):
    monkeypatch.setattr("tests.test_data_rules.PROJECT", tmp_path)
    file = tmp_path / "include" / "new.py"
    file.parent.mkdir()
    file.write_text(f"lines = text.{method}()\n")
    (found,) = banned_calls(file)
    assert found.startswith(f"include/new.py:1: {method}() ")
