"""``python -m local.openai_emulator --port N --folder DIR``."""

import argparse
import logging
from functools import partial
from pathlib import Path

import local.openai_emulator as package
from local.web_server import until_stopped

from .app import create_app


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m local.openai_emulator",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1 (0: any free)")
    parser.add_argument("--folder", type=Path, required=True, help="where its state is stored; created if missing")
    parser.add_argument("--upstream", metavar="URL", help="OpenAI-compatible server that answers; may start later")
    options = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    until_stopped(partial(create_app, options.folder, options.upstream), options.port)


if __name__ == "__main__":
    main()
