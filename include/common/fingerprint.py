"""Short names for values that may be long or must not be shown."""

from __future__ import annotations

import hashlib
import json


def fingerprint(*parts: object) -> str:
    """Return 12 characters that identify these values, such as a prompt's instructions, output schema and tools."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
