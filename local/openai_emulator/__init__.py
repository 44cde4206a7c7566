"""An emulator of OpenAI's files, fine-tuning and batch endpoints. It is a fake: nothing is ever trained.

For machines where no fine-tuning provider can be had. Files are kept, jobs live through their statuses by the clock,
and their events and results look like real ones, but **the losses are made up** and no weights exist. A model that a
job "made", `ft:<base>:emulator:<suffix>:<start of the job's id>`, is the base model of the server behind it, shown the
4 training examples whose user message is nearest to the question (by that server's embeddings), as turns before the
question's own: the nearest last, the start of each user message, the whole answer. Examples of weight 0 are not shown,
and of a long file only the first 2,000 are. Questions to other models are passed on to that server unchanged.

What is real: training and validation files are checked as `include.fine_tuning.examples` does, and a job with a bad one
fails and says which lines. `trained_tokens` are the file's tokens times the epochs. Files and jobs are in a folder,
and outlive a `kill -9`.

Batches are answered for real, by the server behind, request by request and as fast as it does; what is a fake about
them is the price (there is none) and the time (a batch begins at once, and expires only if it is told to). Their input
is checked line by line with the provider's codes; an answer is on disk before the next request is sent.

A job takes `--job-seconds`: a tenth of it `validating_files`, a tenth `queued`, then `running`. Any API key is
accepted unless `--token` is given. Everything else about a provider that a test may need is under `/emulator`, where
no key is asked for. Outcomes and faults are forgotten when the process ends:

`POST /emulator/jobs`
    What becomes of the next job that is created and has no outcome yet: `{"outcome": {...}}` with any of
    `"status"` (`"succeeded"`, `"failed"`, `"cancelled"`: what it ends as), `"error"`
    (`{"code", "message", "param"}`; with a code `invalid_...` it fails when its files are validated, else when its
    time is up) and `"hold"` (a status, known or not, that it has from the start until that is changed).
`POST /emulator/jobs/{id}`
    `{"status": ..., "error": ...}` gives a job a status now. One that ends it does so as the real one would, any
    other is held; `null` lets the job go on by the clock.
`GET /emulator/jobs`
    All jobs, the newest first.
`POST /emulator/batches`
    What becomes of the next batch: `{"outcome": {...}}` with any of `"status"` (`"failed"`, `"expired"`,
    `"cancelled"`), `"error"` (`{"code", "message", "line", "param"}`), `"hold"` (a status that it is held in), and
    `"after"`: the number of results after which it meets that (0).
`POST /emulator/batches/{id}`
    `{"status": ...}` gives a batch its end now; `null` lets it go on.
`GET /emulator/batches`
    All batches, the newest first.
`POST /emulator/faults`
    The next `"times"` (1) requests of `"method"` (any) whose path matches `"path"` (a regular expression for its
    start) meet one of: `"status": 503` (with `"code"`, `"message"`, and `"retry_after"` in seconds), instead of
    their answer; `"drop": "before"` or `"after"`, a closed connection before or after the work is done;
    `"delay_before"` or `"delay"`, seconds of waiting before or after the work.
`DELETE /emulator/faults`
    No more faults.
`GET /emulator/requests`
    `{"method", "path", "status", "time"}` of the last 100,000 requests to `/v1`; the status of a dropped one is null.
"""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from local.web_server import in_a_thread

from .app import EMBEDDING_MODEL, JOB_SECONDS, create_app


def serve(
    folder: Path,
    upstream: str | None = None,
    job_seconds: float = JOB_SECONDS,
    port: int = 0,
    token: str | None = None,
    embedding_model: str = EMBEDDING_MODEL,
) -> AbstractContextManager[str]:
    """Run the emulator in a thread of this process; see `local.web_server.in_a_thread`.

    :param folder: where its state is kept.
    :param upstream: base URL of the OpenAI-compatible server that has the models; without one it answers no questions.
    :param job_seconds: how long a job takes.
    :param token: the only API key that is accepted; any is if there is none.
    :param embedding_model: the model of the server behind that finds the nearest examples.
    """
    return in_a_thread(partial(create_app, folder, upstream, job_seconds, token, embedding_model), port)
