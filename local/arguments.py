"""Numbers and days on the command lines of this folder, which `make` passes on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from math import nan

LONGEST_SHOWN = 40


def number(name: str, low: float, high: float) -> Callable[[str], float]:
    """Return a type of argparse's: a number from `low` to `high`.

    :param name: what the person who reads the error calls it.
    """
    return lambda text: _within(name, text, float, low, high, "number")


def whole_number(name: str, low: int, high: int) -> Callable[[str], int]:
    """Return a type of argparse's: a whole number from `low` to `high`."""
    return lambda text: int(_within(name, text, int, low, high, "whole number"))


def day(name: str) -> Callable[[str], date]:
    """Return a type of argparse's: a date."""

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
    if not low <= found <= high:  # as of nan
        raise _refused(name, text, f"a {what} from {low} to {high}")
    return found


def _refused(name: str, text: str, wanted: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
    return argparse.ArgumentTypeError(f"{name}={shown!r}: it must be {wanted}")
