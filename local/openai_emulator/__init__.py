"""An emulator of OpenAI's files, fine-tuning and batch endpoints. It is a fake: nothing is ever trained.

For machines that reach no provider. What is real: training files and batch inputs are checked, by the emulator's own
rules, and a batch's requests are answered, one by one, by the server behind it. What is a fake: a job goes through its
statuses by the clock and no weights exist; a batch costs nothing, begins at once and never expires by itself. A model
that a job "made", `ft:<base>:emulator:<suffix>:<start of the job's id>`, is the base model, shown the 4 training
examples that have most words in common with the question. Requests for other models are passed on unchanged. Files,
jobs, batches and tuned models are stored in a folder and survive a `kill -9`; a batch that was cut off is answered from
its start.

Any API key is accepted unless `serve` is given one. What a test controls is under `/emulator`, where no key is needed.
Outcomes, faults and the list of requests are lost when the process ends:

`POST /emulator/jobs`, `POST /emulator/batches`
    The outcome of the next job or batch that is created (outcomes queue up): any of `"status"`, its final status;
    `"error"`, with which it fails; `"hold"`, a status, known or not, in which it stays; and, for a batch, `"after"`:
    the number of answers after which this happens (0).
`POST /emulator/jobs/{id}`, `POST /emulator/batches/{id}`
    `{"status": ...}` ends a job or a batch now.
`GET /emulator/jobs`, `GET /emulator/batches`
    All of them, the newest first.
`POST /emulator/faults`
    The next `"times"` (1) requests of `"method"` whose path matches `"path"` (a regular expression for its start) get
    one of: `"status": 503` (with `"code"`, and `"retry_after"` in seconds) instead of their answer; `"drop": "before"`
    or `"after"`, a connection that ends before or after the work is done; `"delay"`, seconds between work and answer.
`GET /emulator/requests`
    `{"method", "path"}` of all requests to `/v1`, the oldest first.
"""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from local.web_server import in_a_thread

from .app import create_app


def serve(folder: Path, upstream: str | None = None, **settings: Any) -> AbstractContextManager[str]:
    """Run the emulator in a thread of this process.

    :param settings: see `local.openai_emulator.app.create_app`.
    :return: a context with its base URL; see `local.web_server.in_a_thread`.
    """
    return in_a_thread(partial(create_app, folder, upstream, **settings))
