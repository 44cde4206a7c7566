"""The requests of a batch, and what came back for them: files of JSON lines that are read line by line.

A request is sent under a name that says what it asks, not only whose it is: a result of another request with the same
custom id, from before the input was changed, is not taken for its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException

from include.batch_api.api import ENDPOINT
from include.common.json_lines import json_line, read_lines
from include.common.provider_http import is_refusal_status
from include.common.storage import new_artifact
from include.common.text import clean_json

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

# The limits of OpenAI's Batch API.
MOST_REQUESTS = 50_000
LARGEST_FILE = 200_000_000
LONGEST_CUSTOM_ID = 256
LONGEST_LINE = 20_000_000
PROBLEMS_IN_ERROR = 20

AGAIN, REFUSED, ANSWERED = range(3)

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """A request: the caller's id for it, the name that it is sent under, and the body of the call."""

    custom_id: str
    name: str
    body: dict[str, Any]


def check_requests(path: ObjectStoragePath) -> dict[str, str]:
    """The custom ids of the file's requests in order, by the names that they are sent under.

    :raises AirflowFailException: naming the bad lines, or the limit that the file is above.
    """
    if not path.is_file():
        raise AirflowFailException(f"There is no file {path}.")
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    model, problems = "", []
    for number, request in _read(path):
        if isinstance(request, str):
            problems.append(f"line {number}: {request}")
        elif request.custom_id in lines:
            problems.append(
                f"line {number}: custom_id {request.custom_id!r} is that of line {lines[request.custom_id]}"
            )
        elif request.body["model"] != (model := model or request.body["model"]):
            problems.append(f"line {number}: body.model is not {model!r}, as before: a batch is for one model")
        else:
            lines[request.custom_id] = number
            found[request.name] = request.custom_id
        if len(problems) == PROBLEMS_IN_ERROR or len(found) > MOST_REQUESTS:
            break
    if problems:
        raise AirflowFailException(f"{path}, nothing was uploaded: {'; '.join(problems)}.")
    if not found:
        raise AirflowFailException(f"{path} is empty: there is nothing to ask.")
    if len(found) > MOST_REQUESTS:
        raise AirflowFailException(f"{path} has more than {MOST_REQUESTS:,} requests, the most of a batch: split it.")
    return found


def read_requests(path: ObjectStoragePath) -> Iterator[Request]:
    """The requests of a file that was checked."""
    return (request for _, request in _read(path) if isinstance(request, Request))


def _read(path: ObjectStoragePath) -> Iterator[tuple[int, Request | str]]:
    """Each line's number, with its request or what is wrong with it."""
    with path.open("rb") as file:
        for number, line in read_lines(file, LONGEST_LINE):
            if line is None:
                yield number, f"it is longer than {LONGEST_LINE:,} bytes"
                return
            if line.strip():
                yield number, _request(line)


def _request(line: bytes) -> Request | str:
    try:
        given = json.loads(clean_json(line.decode()))
        custom_id, body = given["custom_id"], given["body"]
        sent = json.dumps(body, sort_keys=True).encode()
    except (ValueError, RecursionError):
        return "it is not JSON"
    except (KeyError, TypeError):
        return 'it is no {"custom_id": ..., "body": {...}}'
    if not isinstance(custom_id, str) or not custom_id.strip() or len(custom_id) > LONGEST_CUSTOM_ID:
        return f"custom_id is no text of 1 to {LONGEST_CUSTOM_ID} characters"
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not body["model"]:
        return "body.model is missing"
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return "body.messages is missing"
    return Request(custom_id, f"{custom_id}:{hashlib.sha256(sent).hexdigest()[:16]}", body)


def write_upload(path: ObjectStoragePath, requests: ObjectStoragePath, names: Set[str]) -> str:
    """Write the requests of these names as the provider wants them, and return the SHA-256 of the file.

    :raises AirflowFailException: it would be larger than the provider takes.
    """
    digest, size = hashlib.sha256(), 0
    with new_artifact(path) as file:
        for request in read_requests(requests):
            if request.name not in names:
                continue
            call = {"custom_id": request.name, "method": "POST", "url": ENDPOINT, "body": request.body}
            line = f"{json.dumps(call)}\n".encode()
            size += len(line)
            if size > LARGEST_FILE:
                raise AirflowFailException(
                    f"{requests} is sent as more than {LARGEST_FILE // 1_000_000} MB, the most of a batch: split it."
                )
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


class _Line(NamedTuple):
    """Where a result is: the best one that there is for its request."""

    kind: int
    file: int
    offset: int
    length: int


class Answers:
    """What the provider's files say, of which memory holds only the places.

    :param folder: on this machine, for copies of the files.
    :param names: of the requests; results of others are not looked at.
    """

    def __init__(self, folder: Path, names: Set[str]) -> None:
        self._folder = folder
        self._names = names
        self._files: list[IO[bytes]] = []
        self._lines: dict[str, _Line] = {}

    def add(self, path: ObjectStoragePath) -> None:
        """Take in a file of the provider's; of several results for a request, an answer stays, else the last."""
        local = self._folder / str(len(self._files))
        with path.open("rb") as source, local.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        file = local.open("rb")
        self._files.append(file)
        offset = 0
        for number, line in enumerate(file, 1):
            try:
                result = json.loads(line)
                name, kind = result["custom_id"], _kind(result)
                known = self._lines.get(name)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                log.warning("%s, line %d, is no result; its request counts as unanswered.", path, number)
            else:
                if name in self._names and (known is None or (kind >= known.kind and known.kind != ANSWERED)):
                    self._lines[name] = _Line(kind, len(self._files) - 1, offset, len(line))
            offset += len(line)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def missing(self) -> set[str]:
        """The requests that have no answer, but may get one if they are sent again."""
        return {name for name in self._names if name not in self._lines or self._lines[name].kind == AGAIN}

    def write(self, path: ObjectStoragePath, requests: dict[str, str]) -> Counter[str]:
        """Write a line per request, in order: `{"custom_id", "response": body or null, "error": ... or null}`.

        An error is `{"status", "code", "message"}`. Return how many were answered and how many not.
        """
        counts = Counter(answered=0, failed=0)
        with new_artifact(path) as file:
            for name, custom_id in requests.items():
                result = self._result(name)
                counts["failed" if result["error"] else "answered"] += 1
                file.write(json_line({"custom_id": custom_id, **result}))
        return counts

    def _result(self, name: str) -> dict[str, Any]:
        place = self._lines.get(name)
        if place is None:
            missing = {"status": None, "code": "no_result", "message": "The provider's files have no result."}
            return {"response": None, "error": missing}
        file = self._files[place.file]
        file.seek(place.offset)
        result = json.loads(file.read(place.length))
        response = result.get("response") or {}
        body = response.get("body")
        if place.kind == ANSWERED:
            return {"response": body, "error": None}
        error = result.get("error") or (body.get("error") if isinstance(body, dict) else None)
        said = error if isinstance(error, dict) else {"message": str(error or "")}
        return {
            "response": None,
            "error": {
                "status": response.get("status_code"),
                "code": said.get("code") or said.get("type"),
                "message": said.get("message"),
            },
        }


def _kind(result: dict[str, Any]) -> int:
    response = result.get("response") or {}
    status = response.get("status_code")
    if status == 200 and isinstance(response.get("body"), dict) and not result.get("error"):
        return ANSWERED
    return REFUSED if is_refusal_status(status) else AGAIN
