"""The requests of a batch and their results: files of JSON lines, read line by line.

A request is sent under a name made of its custom id and a hash of its body. So after a change of the input, an old
result with the same custom id is not taken for the answer to the new request.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException

from include.batch_api.api import ENDPOINT
from include.common.json_lines import DuplicateName, json_line, read_json, read_lines
from include.common.provider_http import is_refusal_status
from include.common.stored_files import new_artifact
from include.common.text import clean_json

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

# The limits of OpenAI's Batch API.
MOST_REQUESTS = 50_000
LARGEST_FILE = 200_000_000
LONGEST_CUSTOM_ID = 256
LONGEST_LINE = 20_000_000
PROBLEMS_IN_ERROR = 20

AGAIN, REFUSED, ANSWERED = range(3)  # a result never replaces a higher one

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """A request: the caller's id, the name under which it is sent, and the body of the call."""

    custom_id: str
    name: str
    body: dict[str, Any]


def check_requests(path: ObjectStoragePath) -> dict[str, str]:
    """Return the custom ids of the file's requests in order, by the names under which they are sent.

    :raises AirflowFailException: the message names the bad lines, or the limit that the file exceeds.
    """
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    model, problems = "", []
    for number, request in read_requests(path):
        if isinstance(request, str):
            problems.append(f"line {number}: {request}")
        elif request.custom_id in lines:
            problems.append(
                f"line {number}: custom_id {request.custom_id!r} is also in line {lines[request.custom_id]}"
            )
        elif request.body["model"] != (model := model or request.body["model"]):
            problems.append(
                f"line {number}: body.model is not {model!r} as in the lines before: a batch is for one model"
            )
        else:
            lines[request.custom_id] = number
            found[request.name] = request.custom_id
        if len(problems) == PROBLEMS_IN_ERROR or len(found) > MOST_REQUESTS:
            break
    if problems:
        raise AirflowFailException(f"{path}, nothing was uploaded: {'; '.join(problems)}.")
    if not found:
        raise AirflowFailException(f"{path} has no requests.")
    if len(found) > MOST_REQUESTS:
        raise AirflowFailException(f"{path} has more than {MOST_REQUESTS:,} requests, the limit of a batch: split it.")
    return found


def read_requests(path: ObjectStoragePath) -> Iterator[tuple[int, Request | str]]:
    """Yield each line's number, and its request or what is wrong with it."""
    with path.open("rb") as file:
        for number, line in read_lines(file, LONGEST_LINE):
            if line is None:
                yield number, f"it is longer than {LONGEST_LINE:,} bytes"
                return
            if line.strip():
                yield number, _request(line)


def _request(line: bytes) -> Request | str:
    try:
        given = read_json(clean_json(line.decode()))
        custom_id, body = given["custom_id"], given["body"]
        sent = json.dumps(body, sort_keys=True).encode()
    except DuplicateName as error:
        return str(error)
    except ValueError:
        return "it is not JSON"
    except (KeyError, TypeError):
        return 'it is not of the form {"custom_id": ..., "body": {...}}'
    if not isinstance(custom_id, str) or not custom_id.strip() or len(custom_id) > LONGEST_CUSTOM_ID:
        return f"custom_id must be a string of 1 to {LONGEST_CUSTOM_ID} characters"
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not body["model"]:
        return "body.model is missing"
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return "body.messages is missing"
    return Request(custom_id, f"{custom_id}:{hashlib.sha256(sent).hexdigest()[:16]}", body)


def write_upload(path: ObjectStoragePath, requests: ObjectStoragePath, names: Set[str]) -> str:
    """Write the requests with these names in the provider's form, and return the SHA-256 of the file.

    :raises AirflowFailException: the file would be larger than the provider accepts.
    """
    digest, size = hashlib.sha256(), 0
    with new_artifact(path) as file:
        for _, request in read_requests(requests):
            if isinstance(request, str) or request.name not in names:
                continue
            call = {"custom_id": request.name, "method": "POST", "url": ENDPOINT, "body": request.body}
            line = f"{json.dumps(call)}\n".encode()
            size += len(line)
            if size > LARGEST_FILE:
                raise AirflowFailException(
                    f"{requests} is sent as over {LARGEST_FILE // 1_000_000} MB, the limit of a batch: split it."
                )
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


class Answers:
    """The best result of each request in the provider's files, kept in a temporary file: an answer, else the last one.

    :param requests: custom ids by the names under which the requests are sent; other results are ignored.
    """

    def __init__(self, requests: Mapping[str, str]) -> None:
        self._database = sqlite3.connect("")  # a temporary file that SQLite deletes on closing
        self._database.execute("CREATE TABLE request (name TEXT PRIMARY KEY, id TEXT, kind INTEGER, line BLOB)")
        rows = ((name, custom_id, AGAIN) for name, custom_id in requests.items())
        self._database.executemany("INSERT INTO request VALUES (?, ?, ?, NULL)", rows)

    def add(self, path: ObjectStoragePath) -> None:
        """Read the results from a file of the provider."""
        better = "UPDATE request SET kind = ?1, line = ?2 WHERE name = ?3 AND kind <= ?1 AND kind < ?4"
        with path.open("rb") as file:
            for number, line in read_lines(file, LONGEST_LINE):
                try:
                    result = json.loads(line or b"")
                    self._database.execute(better, (_kind(result), line, str(result["custom_id"]), ANSWERED))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    log.warning("%s, line %d, is not a result; its request counts as unanswered.", path, number)

    def close(self) -> None:
        """Delete the temporary file."""
        self._database.close()

    def missing(self) -> set[str]:
        """Return the names of the requests without an answer that may get one if they are sent again."""
        return {name for (name,) in self._database.execute("SELECT name FROM request WHERE kind = ?", (AGAIN,))}

    def write(self, path: ObjectStoragePath) -> Counter[str]:
        """Write a line per request, in order: `{"custom_id", "response": body or null, "error": ... or null}`.

        An error is `{"status", "code", "message"}`. Return how many were answered and how many failed.
        """
        counts = Counter(answered=0, failed=0)
        with new_artifact(path) as file:
            for custom_id, kind, line in self._database.execute("SELECT id, kind, line FROM request ORDER BY rowid"):
                counts["answered" if kind == ANSWERED else "failed"] += 1
                file.write(json_line({"custom_id": custom_id, **_result(kind, line)}))
        return counts


def _result(kind: int, line: bytes | None) -> dict[str, Any]:
    if line is None:
        missing = {"status": None, "code": "no_result", "message": "The provider's files have no result."}
        return {"response": None, "error": missing}
    result = json.loads(line)
    response = result.get("response") or {}
    body = response.get("body")
    if kind == ANSWERED:
        return {"response": body, "error": None}
    error = result.get("error") or (body.get("error") if isinstance(body, dict) else None)
    said = error if isinstance(error, dict) else {"message": str(error or "")}
    shown = {
        "status": response.get("status_code"),
        "code": said.get("code") or said.get("type"),
        "message": said.get("message"),
    }
    return {"response": None, "error": shown}


def _kind(result: dict[str, Any]) -> int:
    response = result.get("response") or {}
    status = response.get("status_code")
    if status == 200 and isinstance(response.get("body"), dict) and not result.get("error"):
        return ANSWERED
    return REFUSED if is_refusal_status(status) else AGAIN
