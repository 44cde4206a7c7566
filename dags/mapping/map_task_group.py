"""
### A mapped task group: several steps per item

Each company goes through the same two steps, look up and assess. In a mapped group, a company goes on to its next step
while others are still being looked up, and a company that fails stops only itself. Two mapped tasks one after the other
would wait for **all** look-ups before the first assessment.
"""

from typing import get_args

from airflow.sdk import Param, dag, get_current_context, task, task_group

from include.common.mapping import failures, mappable, mapped_results
from include.common.task_defaults import DEFAULT_ARGS
from include.sample.company_research import CompanyName, revenue_by_year

COMPANIES = list(get_args(CompanyName))


@dag(
    description="Several steps per item: looks companies up and assesses them.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "mapping"],
    doc_md=__doc__,
    params={
        "companies": Param(
            COMPANIES[:2],
            type="array",
            items={"type": "string", "maxLength": 100},
            maxItems=10_000,
            title="Companies",
            description=f"Among: {', '.join(COMPANIES)}. One that does not exist fails alone.",
        ),
    },
)
def map_task_group():
    @task
    def get_companies() -> list[str]:
        return mappable(get_current_context()["params"]["companies"])

    @task_group
    def company(name: str):
        @task(map_index_template="{{ company }}")
        def look_up(name: str):
            get_current_context()["company"] = name
            return {"name": name, "revenue": revenue_by_year(name)}

        @task(map_index_template="{{ company }}")
        def assess(figures: dict) -> str:
            get_current_context()["company"] = figures["name"]
            first, *_, last = figures["revenue"]
            return f"{figures['name']} {'grows' if last > first else 'shrinks'} ({first} to {last} million EUR)"

        assess(look_up(name))

    @task(trigger_rule="all_done")
    def report(names: list[str]):
        found = mapped_results("company.assess", names)
        return {"result": ("; ".join(filter(None, found)) or "no companies") + failures(names, found)}

    names = get_companies()
    company.expand(name=names) >> report(names)


map_task_group()
