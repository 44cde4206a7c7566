"""Messages that no reader should trip over, and a fake of what holds them."""

from __future__ import annotations

import json
from typing import Any

from include.messages.contract import LARGEST_BYTES, new_request


class Message:
    """A fake: as much of a `confluent_kafka.Message` as the parser reads."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def value(self) -> Any:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value

    def topic(self) -> str:
        return "inference_requests"

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 41


def _changed(**fields: Any) -> bytes:
    request = json.loads(new_request("Where is my invoice?").model_dump_json())
    return json.dumps({**request, **fields}).encode()


HOSTILE: dict[str, bytes | None] = {
    "a tombstone": None,
    "empty": b"",
    "no JSON": b"hello",
    "half of a JSON object": _changed()[:40],
    "not UTF-8": b"\xff\xfe\x00" + _changed(),
    "bytes in the text that are not UTF-8": _changed(text="X").replace(b'"X"', b'"\xc3\x28"'),
    "NaN": b"NaN",
    "NaN as the text": _changed(text=float("nan")),
    "infinite time": _changed(sent_at=1e400),
    "null": b"null",
    "false": b"false",
    "zero": b"0",
    "an empty list": b"[]",
    "an empty object": b"{}",
    "a NUL in the text": _changed(text="a\0b"),
    "a NUL in the echo": _changed(reply={"echo": "\0"}),
    "half of a surrogate pair": _changed(text="\ud800"),
    "5 MB": b"x" * 5_000_000,
    "too large by a byte": _changed(text="x").ljust(LARGEST_BYTES + 1),
    "deeply nested lists": b"[" * 100_000,
    "deeply nested objects": b'{"text":' * 20_000,
    "another version": _changed(version=2),
    "no version": _changed(version=None),
    "a blank text": _changed(text=" \n"),
    "a text that is a number": _changed(text=7),
    "an id with a line break": _changed(request_id="a\nb"),
    "an id of 1,000 characters": _changed(request_id="x" * 1000),
    "no time zone": _changed(sent_at="2026-11-24T08:30:00"),
}
