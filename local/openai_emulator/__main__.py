"""``python -m local.openai_emulator --port N --folder DIR``."""

import argparse
import logging
from functools import partial
from pathlib import Path

import local.openai_emulator as package
from local.web_server import until_stopped

from .app import EMBEDDING_MODEL, JOB_SECONDS, create_app


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m local.openai_emulator",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8090, help="port on 127.0.0.1 (default: %(default)s; 0: any free)")
    parser.add_argument("--folder", type=Path, required=True, help="where files and jobs are kept; made if need be")
    parser.add_argument("--upstream", metavar="URL", help="OpenAI-compatible server that answers; may start later")
    parser.add_argument(
        "--job-seconds", type=float, default=JOB_SECONDS, help="how long a job takes (default: %(default)s)"
    )
    parser.add_argument("--token", metavar="KEY", help="the only API key that is accepted (default: any is)")
    parser.add_argument(
        "--embedding-model",
        default=EMBEDDING_MODEL,
        metavar="NAME",
        help="model of the upstream server that finds the nearest examples (default: %(default)s)",
    )
    options = parser.parse_args()
    logging.getLogger("python_multipart").setLevel(logging.WARNING)
    settings = (options.folder, options.upstream, options.job_seconds, options.token, options.embedding_model)
    until_stopped(partial(create_app, *settings), options.port)


if __name__ == "__main__":
    main()
