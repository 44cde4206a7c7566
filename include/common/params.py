"""Limits of a DAG's params."""

from __future__ import annotations

from typing import Any


def limits(**schema: float) -> dict[str, Any]:
    """Return JSON schema keywords (`minimum`, `maxLength`, ...) as arguments of a `Param`.

    A value outside them is rejected, from the form and from REST. Directly in the `Param`, they would let Airflow's
    form change the value silently: it cuts a text that is too long, and takes the nearest number that is allowed.
    """
    return {"allOf": [schema]}
