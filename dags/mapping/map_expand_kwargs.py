"""
### .expand_kwargs(): several arguments that belong together

Grades a model's answers against the expected ones. Two lists are zipped into pairs, and each pair becomes the keyword
arguments of one task. *.expand(answer=..., expected=...)* would combine **every answer with every expectation**.

Lists of different lengths are refused, and the error names both lengths: *zip* alone would silently drop the surplus.

Airflow would render each of these arguments as a template. Here it does not: an answer with {{ ... }} in it stays text.
"""

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Param, dag, get_current_context, task

from include.common.grading import word_recall
from include.common.mapping import failures, mappable, mapped_results
from include.common.task_defaults import DEFAULT_ARGS


@dag(
    description="Several arguments that belong together: grades answers against the expected ones.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "mapping"],
    doc_md=__doc__,
    params={
        "answers": Param(
            ["The link is valid for 60 minutes.", "The trial covers 25 vehicles."],
            type="array",
            items={"type": "string", "maxLength": 5000},
            maxItems=10_000,
            title="Answers",
            description="What the model said, one answer per line.",
        ),
        "expected": Param(
            ["60 minutes", "up to 5 vehicles"],
            type="array",
            items={"type": "string", "maxLength": 5000},
            maxItems=10_000,
            title="Expected",
            description="What it should have said, in the same order.",
        ),
    },
)
def map_expand_kwargs():
    @task
    def pair() -> list[dict]:
        params = get_current_context()["params"]
        answers, expected = params["answers"], params["expected"]
        if len(answers) != len(expected):
            raise AirflowFailException(f"{len(answers)} answers do not pair with {len(expected)} expected ones.")
        return mappable([{"answer": a, "expected": e} for a, e in zip(answers, expected, strict=True)])

    @task(map_index_template="{{ grade }}")
    def grade(answer: str, expected: str) -> float:
        score = word_recall(answer, expected)
        context = get_current_context()
        # Without the answer, as names of tasks are in logs.
        context["grade"] = f"pair {context['ti'].map_index + 1}: {score:.0%}"
        return score

    @task(trigger_rule="all_done")
    def report(pairs: list[dict]):
        scores = mapped_results("grade", pairs)
        graded = [score for score in scores if score is not None]
        mean = f", mean grade {sum(graded) / len(graded):.2f}" if graded else ""
        failed = failures([f"pair {n}" for n in range(1, len(pairs) + 1)], scores)
        return {"scores": scores, "result": f"{len(graded)} of {len(pairs)} answers graded{mean}{failed}"}

    pairs = pair()
    grade.expand_kwargs(pairs) >> report(pairs)


map_expand_kwargs()
