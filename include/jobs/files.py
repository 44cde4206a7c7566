"""Files at a service with OpenAI's API, for jobs that read them."""

from __future__ import annotations

import hashlib
import logging
import time
from typing import TYPE_CHECKING, Any, Literal, cast

from include.jobs.service import OpenAIService, task_error

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from openai import AsyncOpenAI

# A file that the provider deletes sooner is uploaded again, as its job may begin late.
LEAST_LIFE_S = 2 * 24 * 3600.0

log = logging.getLogger(__name__)


async def upload_once(
    service: OpenAIService, file: ObjectStoragePath, purpose: Literal["fine-tune", "batch"] = "fine-tune"
) -> str:
    """Return the provider's id of this file; upload it unless the provider already has the same content.

    The name at the provider is the SHA-256 of the content.

    :raises AirflowException: the provider cannot be reached now.
    :raises AirflowFailException: the provider refuses.
    """
    with file.open("rb") as content:
        digest = hashlib.file_digest(cast(Any, content), "sha256").hexdigest()
        size = content.seek(0, 2)
    name = f"{digest}.jsonl"
    async with service.client() as client:
        try:
            if found := await _uploaded(client, name, size, purpose):
                log.info("%s is already at the provider, as %s.", file.name, found)
                return found
            with file.open("rb") as content:
                uploaded = await client.files.create(file=(name, content), purpose=purpose, timeout=600)
        except Exception as error:
            raise task_error(service, f"uploading {file.name}", error) from None
    log.info("%s was uploaded as %s (%d bytes).", file.name, uploaded.id, size)
    return uploaded.id


async def _uploaded(client: AsyncOpenAI, name: str, size: int, purpose: str) -> str | None:
    needed_until = time.time() + LEAST_LIFE_S
    found = [
        each
        async for each in client.files.list(purpose=purpose, limit=1000)
        if (each.filename, each.bytes) == (name, size)
        and each.status != "error"
        and (each.expires_at is None or each.expires_at > needed_until)
    ]
    return min(found, key=lambda each: (each.created_at, each.id)).id if found else None
