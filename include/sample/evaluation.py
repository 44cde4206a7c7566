"""The labelled cases, a file of JSON lines for each subject: see README.md."""

from pathlib import Path

CASES = Path(__file__).with_name("cases")
