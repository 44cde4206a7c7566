"""Deletes the DAGs of a copy of this project, each in turn and all at once, and runs what is cheap of its tests.

A process of its own, as `include` must be the copy's: `python -m tests.deleted_dags`, in the copy. Each case has a
child, forked when what all share has been imported, which takes most of the time. What does not pass is printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest

# Not what says the same of each page or DAG whichever others there are, nor what imports all DAGs once more.
CHEAP = ["tests/test_docs.py", "tests/test_dag_contract.py", "-k"]
CHEAP += ["(every or says_what_it_is_for) and not (command or make_target or troubleshooting or every_task or parsed)"]
COLLECT = ["tests", "--collect-only"]


def run_pytest(arguments: list[str]) -> tuple[int, str]:
    """How pytest ends, and what it says.

    Assertions are not rewritten, and garbage not collected five times at the end: both take longer than the tests.
    """
    plain = ["--assert=plain", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "--durations=0", "--tb=short"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main([*arguments, *plain])
    return int(status), said.getvalue()


def passes_without(files: list[Path], arguments: list[str]) -> bool:
    for path in files:
        path.rename(path.with_suffix(".deleted"))
    if os.fork() == 0:
        status, said = run_pytest(arguments)
        if status:
            print(f"without {', '.join(path.name for path in files)}:\n{said[-3000:]}", flush=True)
        os._exit(status)
    failed = os.wait()[1]
    for path in files:
        path.with_suffix(".deleted").rename(path)
    return not failed


def main() -> None:
    status, said = run_pytest(COLLECT)
    assert status == 0, said[-3000:]
    from tests.conftest import dag_files

    files = dag_files()
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "conftest")]:
        del sys.modules[name]
    cases = [(files, COLLECT), (files, CHEAP), *(([path], CHEAP) for path in files)]
    passed = [passes_without(*case) for case in cases]
    print(f"{len(files)} DAGs, {sum(passed)} of {len(cases)} cases passed")


if __name__ == "__main__":
    main()
