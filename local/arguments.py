"""Numbers and days on the command lines of this folder, which `make` passes on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from math import nan
from reprlib import repr as short_repr


def number(name: str, low: float, high: float) -> Callable[[str], float]:
    """Return a type for argparse: a number from `low` to `high`.

    :param name: its name in an error.
    """
    return lambda text: _within(name, text, float, low, high, "number")


def whole_number(name: str, low: int, high: int) -> Callable[[str], int]:
    """Return a type for argparse: a whole number from `low` to `high`."""
    return lambda text: int(_within(name, text, int, low, high, "whole number"))


def day(name: str) -> Callable[[str], date]:
    """Return a type for argparse: a date."""

    def read(text: str) -> date:
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise _refused(name, text, "a date such as 2026-11-30") from None

    return read


def _within(name: str, text: str, read: Callable[[str], float], low: float, high: float, what: str) -> float:
    try:
        found = read(text)
    except (ValueError, OverflowError):
        found = nan
    if not low <= found <= high:  # true for nan
        raise _refused(name, text, f"a {what} from {low} to {high}")
    return found


def _refused(name: str, text: str, wanted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{name}={short_repr(text)}: it must be {wanted}")
