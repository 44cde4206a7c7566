"""How the page writes amounts, moments and names."""

from __future__ import annotations

import re
from datetime import datetime


def number(value: float) -> str:
    """Write a number with its thousands parted."""
    return f"{value:,.0f}"


def moment(value: datetime | None) -> str:
    """Write a moment to the second, in UTC."""
    return value.strftime("%Y-%m-%d %H:%M:%S") if value else ""


def file_name(name: str) -> str:
    """Return a file's own name with plain characters only, for a header."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2])
