"""
### Thousands of items: map chunks, not items

A mapped task costs Airflow a second or two and a row in its database, and there may be at most
*[core] max_map_length* (1024) of them. So thousands of items are mapped in lists: here each task sorts a chunk of
tickets into categories by their embeddings alone, 256 per request.

A task per item is right for tens of items that are each slow or cost money: see *batch_inference*.
"""

from airflow.sdk import Param, dag, get_current_context, task

from include.ai.nearest import nearest_labels
from include.common.mapping import chunked, failures, mappable, mapped_results
from include.common.params import limits
from include.common.task_defaults import DEFAULT_ARGS, LLM_POOL
from include.sample.data import tickets

CATEGORIES = {
    "billing": "invoices, prices, payments, refunds, plans",
    "technical": "tracker device, map, alerts, API errors, app does not work",
    "account": "users, login, password, company name, roles, invitations",
}


def name_of(chunk: list[int]) -> str:
    return f"rows {chunk[0]} to {chunk[1] - 1}"


@dag(
    description="Maps chunks of many items: sorts thousands of tickets into categories by embeddings.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "mapping", "embeddings"],
    doc_md=__doc__,
    params={
        "rows": Param(
            10_000,
            type="integer",
            **limits(minimum=0, maximum=100_000),
            title="Rows",
            description="How many tickets; beyond 40, the sample tickets repeat.",
        ),
        "chunk_size": Param(
            1_000,
            type="integer",
            **limits(minimum=1, maximum=10_000),
            title="Chunk size",
            description="Tickets per task.",
        ),
    },
)
def map_chunks():
    @task
    def get_chunks() -> list[list[int]]:
        params = get_current_context()["params"]
        chunks = mappable(chunked(range(params["rows"]), params["chunk_size"]))
        return [[chunk[0], chunk[-1] + 1] for chunk in chunks]  # only where each starts and ends: XCom is not for data

    @task(map_index_template="{{ rows }}", pool=LLM_POOL)
    def sort_tickets(chunk: list[int]):
        get_current_context()["rows"] = name_of(chunk)
        sample = tickets()
        rows = [sample[n % len(sample)] for n in range(*chunk)]
        found = nearest_labels([row["text"] for row in rows], CATEGORIES)
        right = sum(category == row["category"] for category, row in zip(found, rows, strict=True))
        return {"rows": len(rows), "right": right}

    @task(trigger_rule="all_done")
    def report(chunks: list[list[int]]):
        counts = mapped_results("sort_tickets", chunks)
        rows, right = (sum(count[name] for count in counts if count) for name in ("rows", "right"))
        share = f", {right / rows:.0%} as labelled" if rows else ""
        failed = failures([name_of(chunk) for chunk in chunks], counts)
        return {"result": f"{rows} tickets sorted by {len(chunks)} tasks{share}{failed}"}

    chunks = get_chunks()
    sort_tickets.expand(chunk=chunks) >> report(chunks)


map_chunks()
