"""
### Feedback intake: two assets, updated together or separately

Simulates the systems that deliver reviews and tickets. Each task writes a file of new rows and updates its asset with
the number of rows and the file's URL. *any_asset* and *all_assets* wait for these two assets in different ways.
"""

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import Asset, Param, dag, get_current_context, task

from include.common.assets import CUSTOMER_REVIEWS, SUPPORT_TICKETS
from include.common.json_lines import json_line
from include.common.results import publish
from include.common.task_defaults import DEFAULT_ARGS
from include.sample.data import reviews, tickets

SOURCES = ["reviews", "tickets"]


@dag(
    description="Writes new reviews and tickets to files, and updates an asset for each.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "scheduling", "asset"],
    doc_md=__doc__,
    params={
        "sources": Param(
            SOURCES,
            type="array",
            items={"type": "string", "enum": SOURCES},
            minItems=1,
            title="Sources",
            description="Whether reviews, tickets or both have arrived.",
        ),
    },
)
def feedback_intake():
    def land(source: str, texts: list[str], asset: Asset):
        context = get_current_context()
        if source not in context["params"]["sources"]:
            raise AirflowSkipException(f"No {source} have arrived.")
        url = publish(f"{source}.jsonl", b"".join(json_line({"text": text}) for text in texts))
        context["outlet_events"][asset].extra = {"rows": len(texts), "file": url}
        return {"file": url, "result": f"{len(texts)} {source}"}

    @task(outlets=[CUSTOMER_REVIEWS])
    def land_reviews():
        return land("reviews", [row["review"] for row in reviews()], CUSTOMER_REVIEWS)

    @task(outlets=[SUPPORT_TICKETS])
    def land_tickets():
        return land("tickets", [row["text"] for row in tickets()], SUPPORT_TICKETS)

    land_reviews()
    land_tickets()


feedback_intake()
