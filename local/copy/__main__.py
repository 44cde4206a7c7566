from __future__ import annotations

import argparse
import sys
from pathlib import Path

from local import copy as package
from local.copy import CopyError
from local.copy.put import copy
from local.copy.report import report


def main() -> None:
    parser = argparse.ArgumentParser(prog="make copy PATTERN=... TO=...", description=package.__doc__)
    parser.add_argument("pattern", help="the DAG's id, which is its file's name")
    parser.add_argument("to", type=Path, help="the folder of an Astro project")
    arguments = parser.parse_args()
    try:
        print(report(copy(arguments.pattern, arguments.to)))
    except CopyError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
