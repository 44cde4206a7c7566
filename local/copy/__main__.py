from __future__ import annotations

import argparse
import sys
from pathlib import Path

from local import copy as package
from local.copy import CopyError
from local.copy.needs import LAYERS
from local.copy.put import copy
from local.copy.report import report


def main() -> None:
    parser = argparse.ArgumentParser(prog="make copy PATTERN=... TO=...", description=package.__doc__)
    parser.add_argument("pattern", help="the DAG's id, which is its file's name")
    parser.add_argument("to", type=Path, help="the folder of an Astro project")
    parser.add_argument(
        "--with", dest="layers", default="", help=f"optional layers to copy as well, of {','.join(LAYERS)}"
    )
    arguments = parser.parse_args()
    layers = [layer.strip() for layer in arguments.layers.split(",") if layer.strip()]
    try:
        print(report(copy(arguments.pattern, arguments.to, layers)))
    except CopyError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
