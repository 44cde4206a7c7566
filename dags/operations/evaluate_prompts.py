"""
### Evaluate prompts: a change that makes answers worse does not ship

Asks the LLM tasks of the other DAGs, as they are, about labelled cases, and compares each with the result that was
accepted before, case by case. **A significant loss fails the run.** Too few cases, or a missing metric, is neither
passed nor failed, and the report says so. A new prompt or model that is not worse waits for a person, who accepts or
rejects it with the comparison in front of them; no answer in time rejects it. What was accepted is an event of the
asset *accepted_prompt*.

No answer is paid twice: a retry takes those that arrived, and another run those that are not older than *reuse_days*.
What a run may cost is bounded by *budget_usd*.
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

# Where the DAGs of the subjects are.
DAGS = Path(__file__).parents[1]
SUBJECTS = subjects(CASES)


@dag(
    description="Evaluates the prompts of the other DAGs on labelled cases, and refuses what got worse.",
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
            description="The connection to the model to try; empty: that of each task.",
        ),
        "judge_conn_id": Param(
            "pydanticai_default",
            type="string",
            **limits(minLength=1, maxLength=200),
            title="Judge",
            description="The connection to the model that judges texts: another, stronger one than the judged.",
        ),
        "limit": Param(
            None,
            type=["null", "integer"],
            **limits(minimum=1, maximum=100_000),
            title="Limit",
            description="Only so many cases of each subject, to try a prompt; empty: all.",
        ),
        "trials": Param(
            1,
            type="integer",
            **limits(minimum=1, maximum=20),
            title="Trials",
            description="How often each case is asked. More show how steady the answers are, and cost more.",
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
            description="An answer of another run is reused for so many days. Empty: every case is asked anew.",
        ),
        "alarm_rate": Param(
            0.05,
            type="number",
            **limits(minimum=0.0001, maximum=0.5),
            title="False alarms",
            description="The most often that a run fails although nothing got worse: 0.05 is one run in twenty.",
        ),
        "review_minutes": Param(
            1440,
            type="number",
            **limits(exclusiveMinimum=0, maximum=43_200),
            title="Minutes to review",
            description="After this time a new prompt or model without an answer is rejected.",
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
