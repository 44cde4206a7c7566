"""Limits of a DAG's params."""

from __future__ import annotations

from typing import Any


def limits(**schema: float) -> dict[str, Any]:
    """Return JSON schema keywords (`minimum`, `maxLength`, ...) as arguments of a `Param`.

    A value beyond them is refused, from the form as by REST. With them in the `Param` itself, Airflow's form would
    change the value in silence: it cuts a text that is too long, and takes the nearest number that is allowed.
    """
    return {"allOf": [schema]}
