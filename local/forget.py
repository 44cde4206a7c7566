"""Delete stored answers of models from the stack's storage, or from that of GENAI_STORAGE.

make forget RUN=manual__2026-11-26T08:00:00+00:00
make forget DAG=prompt_chaining DAYS=7          those that are older than a week
make forget KEY=3f2a                            those whose file name starts with this
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from local.arguments import number
from local.environment import DEFAULT_HOME, enter


def main() -> None:
    parser = argparse.ArgumentParser(prog="make forget", description=__doc__.partition("\n")[0])
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    for name in ("dag", "run", "key"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--days", type=number("DAYS", 0, 36_500))
    arguments = parser.parse_args()
    enter(arguments.home)
    from include.ai.forget import forget  # Airflow reads its settings when it is imported

    try:
        count = forget(
            dag_id=arguments.dag or None, run_id=arguments.run or None, key=arguments.key or None, days=arguments.days
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{error} Such as: make forget DAG=prompt_chaining DAYS=7 (or RUN=..., KEY=...).")
    print(f"{count} stored answers deleted.")


if __name__ == "__main__":
    main()
