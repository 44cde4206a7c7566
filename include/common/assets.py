"""The assets that DAGs produce and wait for. An asset's name is what the UI shows, and what other teams use."""

from __future__ import annotations

from airflow.sdk import Asset


def _asset(name: str, group: str, description: str) -> Asset:
    return Asset(name=name, uri=f"genai://{group}/{name}", group=group, extra={"description": description})


KNOWLEDGE_BASE = _asset(
    "knowledge_base",
    "knowledge",
    "The help documents in the vector store. An event's extra: added, changed and removed (numbers of documents), "
    "chunks, and changes (the file that names them).",
)
CUSTOMER_REVIEWS = _asset(
    "customer_reviews", "feedback", "New reviews. An event's extra: rows, and file (JSON lines with the field text)."
)
SUPPORT_TICKETS = _asset(
    "support_tickets", "feedback", "New tickets. An event's extra: rows, and file (JSON lines with the field text)."
)
REPORT_REQUEST = _asset(
    "report_request", "feedback", "Somebody wants the review report now. Its events are created in the UI or by REST."
)
TUNED_MODEL = _asset(
    "tuned_model",
    "models",
    "The fine-tuned model to use. An event's extra: model (its id at the provider), base_model, score and base_score.",
)
DAILY_SPEND = _asset(
    "daily_spend",
    "operations",
    "What model calls cost in a day. An event's extra: day, cost_usd, failed_usd, calls, failed_calls, unpriced_calls, "
    "tokens, and by_dag (US dollars).",
)
ACCEPTED_PROMPT = _asset(
    "accepted_prompt",
    "models",
    "A prompt and model that a person accepted. An event's extra: subject, prompt (its fingerprint), model, "
    "passed (the share of cases), cases, accepted_by, and before (prompt and model that were accepted before).",
)
