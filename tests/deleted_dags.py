"""Deletes each DAG of a copy of this project in turn, and says which of the cheap tests then fail.

A process of its own, as `include` must be the copy's: `python tests/deleted_dags.py`, in the copy. All tests are
collected; those of the docs and of the DAGs' contract are run, but for two that take long and only import the DAGs.
Each DAG has a child, forked when what all share has been imported, which takes most of the time. It prints the DAGs
without which a test failed, and what those tests said.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest

RUN = ("test_docs.py", "test_dag_contract.py")
NOT_RUN = ("make_copy", "parsed_without_network", "imports_a_heavy_module")


class OnlyCheapOnes:
    """Collects all, and runs what is cheap."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [
            item for item in items if item.path.name in RUN and not any(part in item.name for part in NOT_RUN)
        ]


def run_tests(*arguments: str) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(["tests", "-p", "no:cacheprovider", "--durations=0", "--tb=short", *arguments], [OnlyCheapOnes()])
    return int(status), said.getvalue()


def main() -> None:
    status, said = run_tests("--collect-only")
    assert status == 0, said[-3000:]
    from tests.conftest import dag_files

    files = dag_files()
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "conftest")]:
        del sys.modules[name]
    for path in files:
        code = path.read_text()
        path.unlink()
        if os.fork() == 0:
            status, said = run_tests()
            if status:
                print(f"without {path.name}:\n{said[-3000:]}", flush=True)
            os._exit(bool(status))
        failed = os.wait()[1]
        Path(path).write_text(code)
        print(f"{path.stem}: {'failed' if failed else 'passed'}", flush=True)


if __name__ == "__main__":
    main()
