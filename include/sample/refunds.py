"""Orders, and what an agent may do about them: refunds and letters, as files on object storage.

Stands in for your shop, payment service and mail server. The run says which order it is about, not the model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow.sdk import get_current_context
from pydantic_ai import ModelRetry

from include.ai.effects import effect_key
from include.common.exclusive import create_file
from include.common.storage import storage_path, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

FOLDER = "refund_agent"
ORDERS: dict[str, dict[str, Any]] = {
    "KF-1001": {"item": "K1 tracker", "paid_eur": 89.0, "ordered": "2026-10-28", "state": "delivered"},
    "KF-1002": {"item": "K2 tracker", "paid_eur": 149.0, "ordered": "2026-11-02", "state": "lost by the carrier"},
    "KF-1003": {"item": "Fleet plan, one year", "paid_eur": 588.0, "ordered": "2025-03-14", "state": "in use"},
}


def look_up_order() -> dict[str, Any]:
    """The customer's order: what it is, what was paid, when it was ordered, its state, and what is refunded already."""
    refunded = sum(refund["amount_eur"] for refund in written("refunds", _order_id()))
    return {**ORDERS[_order_id()], "refunded_eur": refunded}


def refund(amount_eur: float, reason: str) -> str:
    """Pay money back to the customer. The reason is one short sentence."""
    order_id, key = _order_id(), effect_key()
    while True:
        refunds = written("refunds", order_id)
        said = next((note["said"] for note in refunds if note["key"] == key), None)  # the same refund again
        if said is not None:
            return str(said)
        left = ORDERS[order_id]["paid_eur"] - sum(note["amount_eur"] for note in refunds)
        if not 0 < amount_eur <= left:
            raise ModelRetry(f"No money was paid back: the amount must be more than 0 and at most {left} EUR.")
        said = f"{amount_eur} EUR are paid back, refund R-{key[:8]}."
        note = {"key": key, "amount_eur": amount_eur, "reason": reason, "said": said}
        # The storage creates each number once: two refunds at the same moment cannot exceed what was paid.
        if create_file(_path("refunds", order_id) / f"{len(refunds):03}.json", json.dumps(note).encode()):
            return said


def write_to_customer(text: str) -> str:
    """Send a letter to the customer. It cannot be taken back."""
    write_artifact(_path("letters", _order_id()) / f"{uuid4().hex}.json", json.dumps({"text": text}))
    return "The letter is sent."


def written(folder: str, order_id: str) -> list[dict[str, Any]]:
    """Read the files in `refunds` or `letters` for an order."""
    path = _path(folder, order_id)
    if not path.exists():
        return []
    files = [file for file in path.fs.ls(path.path, detail=False) if file.endswith(".json")]  # no half-written ones
    return [json.loads(path.fs.cat_file(file)) for file in sorted(files)]


def _path(folder: str, order_id: str) -> ObjectStoragePath:
    return storage_path(FOLDER, folder, order_id)


def _order_id() -> str:
    return str(get_current_context()["params"]["order"])
