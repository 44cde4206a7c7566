"""The project's DAGs: those of the template, and those that its user added."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from local.environment import PROJECT, user_environment
from local.processes import StackError

FOLDER = PROJECT / "dags"

# In a process of its own, as the user's files can do anything while they are imported.
PARSE = """
import json, sys
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # Airflow 3.1
    from airflow.models.dagbag import DagBag

found, errors = {}, {}
for file in json.loads(sys.argv[1]):
    bag = DagBag(file)
    found |= {dag_id: file for dag_id in bag.dags}
    errors |= {file: error.strip().splitlines()[-1] for error in bag.import_errors.values()}
print()
print(json.dumps([found, errors]))
"""


def template_dags() -> dict[str, Path]:
    """Return the file of each DAG of the template that has not been deleted, by DAG id."""
    lines = (FOLDER / "template_dags.txt").read_text(encoding="utf-8").split("\n")
    files = [PROJECT / line for line in lines if line.startswith("dags/")]
    return {path.stem: path for path in files if path.exists()}


def own_dags(airflow_home: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Parse the DAG files that are not the template's. This takes seconds.

    :returns: the file of each DAG, by DAG id; and for each file that cannot be imported, by its path in the project,
        the last line of the error.
    """
    files = sorted(set(FOLDER.rglob("*.py")) - set(template_dags().values()))
    environment = user_environment() | {
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow_home / 'airflow.db'}",
        "PYTHONPATH": os.pathsep.join(map(str, (PROJECT, FOLDER, PROJECT / "plugins"))),
    }
    command = [sys.executable, "-W", "ignore", "-c", PARSE, json.dumps([str(file) for file in files])]
    parsed = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if parsed.returncode:
        return {}, {"dags/": (parsed.stderr.strip() or "no error was printed").split("\n")[-1]}
    found, errors = json.loads(parsed.stdout.strip().split("\n")[-1])
    return (
        {dag_id: Path(file) for dag_id, file in found.items()},
        {Path(file).relative_to(PROJECT).as_posix(): error for file, error in errors.items()},
    )


def wanted_dags(names: str, airflow_home: Path) -> dict[str, Path]:
    """Return the file of each DAG in a comma-separated list, by DAG id; an empty list means the template's DAGs.

    :raises StackError: there is no such DAG.
    """
    there = template_dags()
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if set(wanted) <= there.keys():
        return {name: there[name] for name in wanted} or there
    own, broken = own_dags(airflow_home)
    there |= own
    if unknown := [name for name in wanted if name not in there]:
        lines = [f"There is no DAG {', '.join(unknown)}. There are: {', '.join(there)}."]
        lines += [f"{file} cannot be imported: {error}" for file, error in broken.items()]
        raise StackError("\n".join(lines))
    return {name: there[name] for name in wanted}
