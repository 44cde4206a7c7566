"""The labelled cases, in files of JSON lines: see README.md."""

from pathlib import Path

CASES = Path(__file__).with_name("cases")
