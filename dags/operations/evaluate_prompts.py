"""
### Evaluate prompts: a change that makes answers worse does not ship

Asks the LLM tasks of the other DAGs, unchanged, about labelled cases, and compares each task with its last accepted
result, case by case. **A significant loss fails the run.** Too few cases or a missing metric neither pass nor fail, and
the report says so. A new prompt or model that is not worse waits for a person, who sees the comparison and accepts or
rejects it; no answer in time means rejected. Each acceptance is an event of the asset *accepted_prompt*.

No answer is paid twice: a retry reuses the answers that arrived, and another run those that are at most *reuse_days*
old. *budget_usd* limits what a run may cost.
"""

from pathlib import Path

from airflow.sdk import Param, dag, get_current_context, task, task_group

from include.common.assets import ACCEPTED_PROMPT
from include.common.mapping import mapped_results
from include.common.params import limits
from include.common.task_defaults import DEFAULT_ARGS, LLM_TASK
from include.evaluation import accepting
from include.evaluation.run import EvaluationRun, summarize
from include.sample.evaluation import CASES
from include.subjects import subjects

# The folder with the DAGs of the subjects.
DAGS = Path(__file__).parents[1]
SUBJECTS = subjects(CASES)


@dag(
    description="Evaluates the prompts of the other DAGs on labelled cases, and refuses those that got worse.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "operations", "evaluation", "human-in-the-loop"],
    doc_md=__doc__,
    params={
        "subjects": Param(
            None,
            type=["null", "array"],
            items={"type": "string", "enum": [subject.name for subject in SUBJECTS]},
            uniqueItems=True,
            minItems=1,
            maxItems=len(SUBJECTS),
            title="Subjects",
            description="Which LLM tasks to evaluate; empty: all whose DAG is in this project.",
        ),
        "conn_id": Param(
            None,
            type=["null", "string"],
            **limits(maxLength=200),
            title="Model",
            description="The connection to the model to try; empty: each task's own.",
        ),
        "judge_conn_id": Param(
            "pydanticai_default",
            type="string",
            **limits(minLength=1, maxLength=200),
            title="Judge",
            description="The connection to the model that judges texts: another, stronger one than the judged model.",
        ),
        "limit": Param(
            None,
            type=["null", "integer"],
            **limits(minimum=1, maximum=100_000),
            title="Limit",
            description="How many cases of each subject to ask about, to try a prompt; empty: all.",
        ),
        "trials": Param(
            1,
            type="integer",
            **limits(minimum=1, maximum=20),
            title="Trials",
            description="How often each case is asked. More trials show how stable the answers are, and cost more.",
        ),
        "budget_usd": Param(
            None,
            type=["null", "number"],
            **limits(exclusiveMinimum=0, maximum=100_000),
            title="Budget",
            description="What new answers may cost in US dollars, shared among the subjects. Empty: no limit.",
        ),
        "reuse_days": Param(
            7,
            type=["null", "number"],
            **limits(exclusiveMinimum=0, maximum=36_500),
            title="Reuse",
            description="For how many days answers of other runs are reused. Empty: every case is asked again.",
        ),
        "alarm_rate": Param(
            0.05,
            type="number",
            **limits(minimum=0.0001, maximum=0.5),
            title="False alarms",
            description="The share of runs that may fail although nothing got worse: 0.05 is one run in twenty.",
        ),
        "review_minutes": Param(
            1440,
            type="number",
            **limits(exclusiveMinimum=0, maximum=43_200),
            title="Minutes to review",
            description="After this time without an answer, a new prompt or model is rejected.",
        ),
    },
)
def evaluate_prompts():
    @task
    def choose_subjects():
        return run().choose()

    @task(**LLM_TASK, map_index_template="{{ subject }}")
    def evaluate(subject: str, chosen: list[str]):
        get_current_context()["subject"] = subject
        return run().evaluate(subject, len(chosen))

    @task(trigger_rule="all_done")
    def compare(chosen: list[str]):
        results = mapped_results("evaluate", chosen)
        evaluated = [name for name, result in zip(chosen, results, strict=True) if result]
        return run().publish(run().compare(chosen, evaluated))

    @task
    def report(found: list[dict]):
        return summarize(found)

    @task_group
    def change(found: dict):
        @task(map_index_template="{{ subject }}")
        def gate(found: dict):
            get_current_context()["subject"] = found["subject"]
            accepting.pass_gate(found)

        @task(outlets=[ACCEPTED_PROMPT], map_index_template="{{ subject }}")
        def accept(found: dict, decision: dict):
            context = get_current_context()
            context["subject"] = found["subject"]
            accepted = accepting.accept(context["run_id"], found, decision)
            context["outlet_events"][ACCEPTED_PROMPT].extra = accepted

        review = accepting.AcceptOperator(
            task_id="review",
            found=found,
            minutes="{{ params.review_minutes }}",
            map_index_template="{{ subject }}",
        )
        gate(found) >> review
        accept(found, review.output)

    chosen = choose_subjects()
    found = compare(chosen)
    evaluate.partial(chosen=chosen).expand(subject=chosen) >> found
    report(found)
    change.expand(found=found)


def run():
    context = get_current_context()
    return EvaluationRun(context["run_id"], context["params"], SUBJECTS, DAGS)


evaluate_prompts()
