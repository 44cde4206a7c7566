"""The requests of a batch, and what came back for them: files of JSON lines that are read line by line.

A request is sent under a name that says what it asks, not only whose it is: a result of another request with the same
custom id, from before the input was changed, is not taken for its own.
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

AGAIN, REFUSED, ANSWERED = range(3)  # a result takes the place of one that is not above it

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """A request: the caller's id for it, the name that it is sent under, and the body of the call."""

    custom_id: str
    name: str
    body: dict[str, Any]


def check_requests(path: ObjectStoragePath) -> dict[str, str]:
    """Return the custom ids of the file's requests in order, by the names that they are sent under.

    :raises AirflowFailException: naming the bad lines, or the limit that the file is above.
    """
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


def _read(path: ObjectStoragePath) -> Iterator[tuple[int, Request | str]]:
    """Yield each line's number, with its request or what is wrong with it."""
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
        for _, request in _read(requests):
            if isinstance(request, str) or request.name not in names:
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


class Answers:
    """The best result of each request in the provider's files, kept in a temporary file: an answer, else the last.

    :param requests: custom ids by the names that the requests are sent under; results of others are not looked at.
    """

    def __init__(self, requests: Mapping[str, str]) -> None:
        self._database = sqlite3.connect("")  # SQLite's own temporary file, which goes when this is closed
        self._database.execute("CREATE TABLE request (name TEXT PRIMARY KEY, id TEXT, kind INTEGER, line BLOB)")
        rows = ((name, custom_id, AGAIN) for name, custom_id in requests.items())
        self._database.executemany("INSERT INTO request VALUES (?, ?, ?, NULL)", rows)

    def add(self, path: ObjectStoragePath) -> None:
        """Take in a file of the provider's."""
        better = "UPDATE request SET kind = ?1, line = ?2 WHERE name = ?3 AND kind <= ?1 AND kind < ?4"
        with path.open("rb") as file:
            for number, line in read_lines(file, LONGEST_LINE):
                try:
                    result = json.loads(line or b"")
                    self._database.execute(better, (_kind(result), line, str(result["custom_id"]), ANSWERED))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    log.warning("%s, line %d, is no result; its request counts as unanswered.", path, number)

    def close(self) -> None:
        """Drop the temporary file."""
        self._database.close()

    def missing(self) -> set[str]:
        """Return the requests that have no answer, but may get one if they are sent again."""
        return {name for (name,) in self._database.execute("SELECT name FROM request WHERE kind = ?", (AGAIN,))}

    def write(self, path: ObjectStoragePath) -> Counter[str]:
        """Write a line per request, in order: `{"custom_id", "response": body or null, "error": ... or null}`.

        An error is `{"status", "code", "message"}`. Return how many were answered and how many not.
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
