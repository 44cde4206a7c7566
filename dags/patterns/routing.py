"""
### Routing: the model chooses which task handles an incident

`@task.llm_branch` may answer with nothing but the id of a task downstream of it. The handlers that were not chosen
are skipped; the summary runs **whichever branch was taken**.
"""

from airflow.sdk import Param, dag, get_current_context, task

from include.ai import chosen_branches, llm_kwargs, untrusted
from include.task_defaults import DEFAULT_ARGS

ROUTING_PROMPT = """Decide how to handle an incident of a fleet-tracking platform.
handle_critical: danger to people, the whole system is down, or data is being lost.
handle_standard: something is broken and needs attention, but work goes on.
handle_low: minor, cosmetic, or only a question."""


@dag(
    dag_display_name="Routing: who handles an incident",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "pattern", "llm", "branch"],
    doc_md=__doc__,
    params={
        "incident": Param(
            "The position feed stopped for all customers ten minutes ago. Dispatchers in three countries call: "
            "the map is empty and the API answers with errors.",
            type="string",
            format="multiline",
            minLength=5,
            maxLength=5000,
            title="Incident",
            description="What was reported.",
        ),
    },
)
def routing():
    @task.llm_branch(**llm_kwargs(), system_prompt=ROUTING_PROMPT)
    def route_incident():
        return untrusted(get_current_context()["params"]["incident"])

    @task
    def handle_critical():
        return {"severity": "critical", "team": "on-call engineer, paged now", "respond_within_minutes": 5}

    @task
    def handle_standard():
        return {"severity": "standard", "team": "next shift's queue", "respond_within_minutes": 240}

    @task
    def handle_low():
        return {"severity": "low", "team": "backlog", "respond_within_minutes": 10080}

    @task(trigger_rule="none_failed_min_one_success")
    def summarize():
        import json

        from include.storage import artifact_path, write_artifact

        context = get_current_context()
        taken = [context["ti"].xcom_pull(task_ids=task_id) for task_id in chosen_branches("route_incident")]
        path = artifact_path("incidents", context["run_id"], "handled.json")
        write_artifact(path, json.dumps({"incident": context["params"]["incident"], "handled": taken}, indent=2))
        decisions = "; ".join(
            f"{result['severity']}: {result['team']}, within {result['respond_within_minutes']} min" for result in taken
        )
        return {"artifact": str(path), "result": decisions}

    handlers = [handle_critical(), handle_standard(), handle_low()]
    route_incident() >> handlers >> summarize()


routing()
