"""Say whether the Dockerfiles' Astro Runtime is behind Astronomer's public catalog. Needs only Python.

    python -m local.newer_runtime [a copy of the catalog]

Exits with 1 if one is behind or was withdrawn: .github/workflows/runtime.yml runs it each week.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

CATALOG = "https://updates.astronomer.io/astronomer-runtime"  # what the Astro CLI reads
PROJECT = Path(__file__).resolve().parent.parent
DOCKERFILES = ("Dockerfile", "common-ai/Dockerfile")
TAG = re.compile(r"^FROM \S+/runtime:(\d+\.\d+)-(\d+)", re.MULTILINE)

Builds = Mapping[str, Mapping[str, Any]]


def findings(catalog: Mapping[str, Any], dockerfiles: Mapping[str, str], today: date) -> Iterator[str]:
    """Yield a line for each Dockerfile that is behind: its build, the newest one, and what moves with it.

    :param catalog: Astronomer's, as parsed JSON.
    :param dockerfiles: the text of each, by name.
    :raises ValueError: the catalog, or a Dockerfile, does not have the expected form.
    """
    try:
        builds: Builds = {name: each["metadata"] for name, each in catalog["runtimeVersionsV3"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the catalog does not have the expected form: {error!r}") from error
    for name, text in dockerfiles.items():
        found = TAG.search(text)
        if found is None:
            raise ValueError(f"{name}: its FROM does not name a build of Astro Runtime, such as runtime:3.1-21")
        series, number = found[1], int(found[2])
        newest = max(_usable(builds, series, today), default=number)
        ours, theirs = builds.get(f"{series}-{number}", {}), builds.get(f"{series}-{newest}", {})
        if ours.get("yanked"):
            yield f"{name}: {series}-{number} was withdrawn: {ours.get('yankedReason', 'no reason is given')}"
        if newest > number:
            was, now = (each.get("airflowVersion", "an unknown Airflow") for each in (ours, theirs))
            lock = "" if was == now else f" Its Airflow is {now} instead of {was}: AIRFLOW in the Makefile moves, too."
            yield f"{name}: {series}-{number} is behind; {series}-{newest} is out since {theirs['releaseDate']}.{lock}"


def _usable(builds: Builds, series: str, today: date) -> Iterator[int]:
    for name, build in builds.items():
        begin, _, number = name.rpartition("-")
        released = date.fromisoformat(build["releaseDate"])
        if begin == series and not build.get("yanked") and build["channel"] == "stable" and released <= today:
            yield int(number)


def main() -> None:
    try:
        if len(sys.argv) > 1:
            text = Path(sys.argv[1]).read_text(encoding="utf-8")
        else:
            with urllib.request.urlopen(CATALOG, timeout=60) as answer:
                text = answer.read().decode()
        dockerfiles = {name: (PROJECT / name).read_text(encoding="utf-8") for name in DOCKERFILES}
        found = list(findings(json.loads(text), dockerfiles, datetime.now(UTC).date()))
    except (OSError, ValueError) as error:
        sys.exit(f"Cannot check whether Astro Runtime is behind: {error}")
    if found:
        sys.exit("\n".join([*found, 'What to do: CONTRIBUTING.md, "Move a pin".']))
    print("Both Dockerfiles have the newest build of their series.")


if __name__ == "__main__":
    main()
