"""PostgreSQL for tests, which is what production has: `make test DATABASE=postgres`.

The server is that of the system's package. It has no port, only a socket in its own folder.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

# Debian and Ubuntu keep the server's programs out of PATH.
FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
OPTIONS = ("listen_addresses=", "fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=500")
START_S = 120


class NoPostgres(Exception):
    """There is no server that could be started; the message says what to do."""


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server, and yield the folder of its socket.

    :raises NoPostgres: its programs are not here.
    """
    path = os.pathsep.join([os.environ["PATH"], *map(str, FOLDERS)])
    programs = [shutil.which(name, path=path) for name in ("initdb", "postgres")]
    if None in programs:
        raise NoPostgres("there is no initdb or no postgres here. On Debian and Ubuntu: apt install postgresql")
    folder = tempfile.mkdtemp(prefix="genai-postgres-")
    user: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:  # as whom the server refuses to run
        nobody = pwd.getpwnam("nobody")
        user |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    initdb, server = map(str, programs)
    options = ["--auth=trust", "--username=airflow", "--encoding=UTF8", "--locale=C", "--no-sync"]
    subprocess.run([initdb, f"--pgdata={folder}/data", *options], check=True, capture_output=True, **user)
    command = [server, "-D", f"{folder}/data", "-k", folder, *(word for each in OPTIONS for word in ("-c", each))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user) as process:
        try:
            _wait_for(folder, process)
            yield folder
        finally:
            process.send_signal(signal.SIGQUIT)  # what it has is thrown away
    shutil.rmtree(folder)


def new_database(folder: str) -> str:
    """Create an empty database on the server with its socket in this folder, and return its URL for SQLAlchemy."""
    import psycopg2

    name = f"airflow_{uuid4().hex[:12]}"
    connection = psycopg2.connect(host=folder, user="airflow", dbname="postgres")
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"postgresql+psycopg2://airflow@/{name}?host={folder}"


def _wait_for(folder: str, process: subprocess.Popen[bytes]) -> None:
    import psycopg2

    deadline = time.monotonic() + START_S
    while True:
        try:
            psycopg2.connect(host=folder, user="airflow", dbname="postgres").close()
            return
        except psycopg2.OperationalError:
            assert process.poll() is None, "PostgreSQL ended while it started"
            assert time.monotonic() < deadline, "PostgreSQL did not start in time"
            time.sleep(0.1)
