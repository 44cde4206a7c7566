"""``python -m local.model_server --port N``."""

import argparse

import local.model_server as package
from local.web_server import until_stopped

from .app import create_app


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m local.model_server",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8080, help="port on 127.0.0.1 (default: %(default)s; 0: any free)")
    until_stopped(create_app, parser.parse_args().port)


if __name__ == "__main__":
    main()
