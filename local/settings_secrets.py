"""Refuse secrets in airflow_settings.yaml, which Git tracks: `astro dev object export` writes passwords into it.

python -m local.settings_secrets [file]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from local.environment import PROJECT

# Names of fields and variables; Airflow's log masks them, too.
SECRET = re.compile(
    r"passw|secret|token|api_?key|access_?key|private_?key|passphrase|credential|authorization|keyfile", re.I
)


def secrets_in(settings: Any) -> Iterator[str]:
    """Yield the place of each secret: its connection or variable and its field, not its value.

    :param settings: the content of airflow_settings.yaml.
    """
    airflow = (settings or {}).get("airflow") or {}
    for connection in airflow.get("connections") or []:
        where = f"connection {connection.get('conn_id')}"
        if connection.get("conn_password"):
            yield f"{where}, conn_password"
        for field in ("conn_uri", "conn_host"):
            if _has_login(connection.get(field)):
                yield f"{where}, {field}"
        yield from _secrets_below(connection.get("conn_extra"), f"{where}, conn_extra")
    for variable in airflow.get("variables") or []:
        name = str(variable.get("variable_name"))
        if SECRET.search(name) and variable.get("variable_value"):
            yield f"variable {name}"
        yield from _secrets_below(variable.get("variable_value"), f"variable {name}")


def _secrets_below(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, str):
        if _has_login(value):
            yield where
        try:
            value = json.loads(value)
        except ValueError:
            return
    if isinstance(value, dict):
        for key, inner in value.items():
            if SECRET.search(str(key)) and inner not in (None, "", False, True):
                yield f"{where}, {key}"
            else:
                yield from _secrets_below(inner, f"{where}, {key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _secrets_below(inner, where)


def _has_login(value: Any) -> bool:
    try:
        return "://" in str(value or "") and urlsplit(str(value)).password is not None
    except ValueError:
        return True  # a malformed URL must not be committed either


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "airflow_settings.yaml"
    try:
        found = list(secrets_in(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        sys.exit(f"{path} cannot be read: {error}")
    if found:
        sys.exit(
            f"{path} is tracked by Git and holds secrets: {'; '.join(found)}. Move them into .env, which is not, as "
            "AIRFLOW_CONN_... and AIRFLOW_VAR_..., and change any that was pushed."
        )


if __name__ == "__main__":
    main()
