"""
### .expand(): one task per message

Masks personal data before a message may go to a model. The list decides, during the run, how many tasks there are.

- **No messages**: the mapped task is skipped, and the report is still written.
- **A bad message** (an empty one): its task fails, the other results are kept, and the report names it.
- **Too many**: refused at once, with the alternative (*map_chunks*).
"""

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Param, dag, get_current_context, task

from include.common.mapping import failures, mappable, mapped_results
from include.common.personal_data import mask_personal_data
from include.common.task_defaults import DEFAULT_ARGS


@dag(
    description="One task per message: masks personal data before a message may go to a model.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "mapping"],
    doc_md=__doc__,
    params={
        "messages": Param(
            [
                "Please call me back at +49 30 1234567, the tracker is silent.",
                "My address is anna.weber@example.com, I never got the invoice.",
                "The map is fine today, thank you.",
            ],
            type="array",
            items={"type": "string", "maxLength": 5000},
            maxItems=10_000,
            title="Messages",
            description="One message per line. Try none, or an empty one.",
        ),
    },
)
def map_expand():
    @task
    def get_messages() -> list[str]:
        return mappable(get_current_context()["params"]["messages"])

    @task(map_index_template="{{ label }}")
    def mask(message: str) -> str:
        context = get_current_context()
        context["label"] = f"message {context['ti'].map_index + 1}"
        if not message.strip():
            raise AirflowFailException(f"The {context['label']} is empty.")
        return mask_personal_data(message)

    @task(trigger_rule="all_done")
    def report(messages: list[str]):
        masked = mapped_results("mask", messages)
        failed = failures([f"message {n}" for n, _ in enumerate(messages, 1)], masked)
        done = len(masked) - masked.count(None)
        return {"masked": masked, "result": f"{done} of {len(masked)} messages masked{failed}"}

    messages = get_messages()
    mask.expand(message=messages) >> report(messages)


map_expand()
