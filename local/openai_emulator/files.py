"""`/v1/files`: uploads go straight to disk; the results of a job are made from its life when they are read."""

import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import Any

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from local.api_error import ApiError

from .life import Job
from .reading import query_int
from .store import File, Store, new_id

LARGEST_FILE = 512 * 1024 * 1024
_BESIDE_THE_FILE = 64 * 1024
_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")


class Files:
    """The files of the emulator."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.routes = [
            Route("/v1/files", self.create, methods=["POST"]),
            Route("/v1/files", self.listing),
            Route("/v1/files/{file}", self.retrieve),
            Route("/v1/files/{file}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{file}/content", self.content),
        ]

    async def create(self, request: Request) -> JSONResponse:
        """Take an upload."""
        async with _upload(request, self._store.uploads) as (purpose, name, path):
            file = File(new_id("file"), name, purpose, path.stat().st_size, int(time.time()))
            path.rename(self._store.content(file.id))
        self._store.add_file(file)
        return JSONResponse(_as_openai(file))

    async def listing(self, request: Request) -> JSONResponse:
        """A page of files, the newest first unless told."""
        query = request.query_params
        limit = query_int(request, "limit", 10_000, most=10_000)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError("order must be asc or desc.", param="order")
        files = self._store.files(query.get("purpose"), query.get("after"), order == "desc")
        there = (shown for file in files if (shown := self._there(file)))
        page = list(islice(there, limit + 1))
        return JSONResponse(as_page([_as_openai(file) for file in page], limit))

    async def retrieve(self, request: Request) -> JSONResponse:
        """What is known of a file."""
        return JSONResponse(_as_openai(self._file(request)))

    async def delete(self, request: Request) -> JSONResponse:
        """Forget a file."""
        file = self._file(request).id
        self._store.delete_file(file)
        return JSONResponse({"id": file, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """The bytes of a file."""
        file = self._file(request)
        if file.job is None:
            return FileResponse(self._store.content(file.id), media_type="application/octet-stream")
        return Response(_results(self._store.job(file.job)), media_type="text/csv")

    def _file(self, request: Request) -> File:
        name = request.path_params["file"]
        file = self._store.file(name)
        shown = file and self._there(file)
        if not shown:
            raise ApiError(f"No such File object: {name}", param="id", status=404)
        return shown

    def _there(self, file: File) -> File | None:
        """The file as it is now; None for results that do not exist yet."""
        if file.job is None:
            return file
        now = time.time()
        job = self._store.job(file.job)
        ended = job.ended_at(now)
        if ended is None or job.status(now) != "succeeded":
            return None
        return file._replace(size=len(_results(job)), created_at=int(ended))


def as_page(items: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of `limit` items, of which one more was looked for."""
    page = items[:limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, "has_more": len(items) > limit} | ends


@contextlib.asynccontextmanager
async def _upload(request: Request, uploads: Path) -> AsyncIterator[tuple[str, str, Path]]:
    """Purpose, name and path of an uploaded file, which is removed if it is not taken away."""
    fields: dict[str, str] = {}
    files: dict[str, Any] = {}

    def on_field(field: Any) -> None:
        fields[field.field_name.decode()] = (field.value or b"").decode(errors="replace")

    def on_file(file: Any) -> None:
        files[file.field_name.decode()] = file

    kind, parameters = parse_options_header(request.headers.get("content-type"))
    with tempfile.TemporaryDirectory(dir=uploads) as folder:
        config = {"UPLOAD_DIR": folder, "UPLOAD_DELETE_TMP": False, "MAX_MEMORY_FILE_SIZE": 0}
        try:
            parser = FormParser(kind.decode(), on_field, on_file, boundary=parameters.get(b"boundary"), config=config)
            received = 0
            async for chunk in request.stream():
                received += len(chunk)
                if received > LARGEST_FILE + _BESIDE_THE_FILE:
                    raise ApiError(f"The file is larger than {LARGEST_FILE} bytes.", param="file", status=413)
                parser.write(chunk)
        except FormParserError as error:
            raise ApiError(f"The request must be multipart/form-data: {error}") from None
        purpose, file = fields.get("purpose"), files.get("file")
        if purpose not in _PURPOSES:
            raise ApiError(f"purpose must be one of {', '.join(_PURPOSES)}.", param="purpose")
        if file is None or not file.size:
            raise ApiError("There is no file in the form, or nothing in the file.", param="file")
        file.close()
        yield purpose, file.file_name.decode(errors="replace"), Path(os.fsdecode(file.actual_file_name))


def _results(job: Job) -> bytes:
    lines = [
        f"{step.number},{step.train_loss},{'' if step.valid_loss is None else step.valid_loss}" for step in job.steps
    ]
    return "\n".join(["step,train_loss,valid_loss", *lines, ""]).encode()


def _as_openai(file: File) -> dict[str, Any]:
    return {
        "object": "file",
        "id": file.id,
        "bytes": file.size,
        "created_at": file.created_at,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }
