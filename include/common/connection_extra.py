"""Settings in a connection's extra, which people write by hand: each is checked before any paid call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import TypeAdapter, ValidationError


def read_setting(conn_id: str, extra: Mapping[str, Any], key: str, form: Any) -> Any:
    """Return a setting of the connection `conn_id`, validated as `form`; None if the extra has none.

    :param form: a pydantic model, or a type with limits such as `PositiveFloat`.
    :raises AirflowFailException: it is not valid. The message names the connection, the key and what is allowed,
        and does not quote the value.
    """
    if extra.get(key) is None:
        return None
    try:
        return TypeAdapter(form).validate_python(extra[key])
    except ValidationError as error:
        problems = []
        for each in error.errors():
            known = f": known are {', '.join(form.model_fields)}" if each["type"] == "extra_forbidden" else ""
            problems.append(f"{'.'.join(map(str, (key, *each['loc'])))}: {each['msg']}{known}")
        raise setting_error(conn_id, "; ".join(problems)) from None


def setting_error(conn_id: str, problem: str) -> AirflowFailException:
    """Return the error for a setting.

    :param problem: the key, a colon, and what is wrong with it.
    """
    return AirflowFailException(f"Connection {conn_id!r}, extra: {problem}.")
