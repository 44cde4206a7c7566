"""
### Fine-tuning: one paid job per run, whatever happens

Check the examples, estimate the cost, upload each file once, train, compare, promote. **Nothing is spent before every
line of the examples is valid and the estimate is within the budget.** A retry, a cleared task, or a task whose worker
or triggerer was killed takes up the existing job. The fine-tuned model is promoted, as an update of the asset
*tuned_model*, only if its answers to the validation set are better than the base model's by a margin.

The connection *openai_default* names the provider, the base model and the price.
"""

import asyncio

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import Metadata, Param, dag, get_current_context, task

from include.common.assets import TUNED_MODEL
from include.common.params import limits
from include.common.task_defaults import DEFAULT_ARGS, LLM_TASK
from include.fine_tuning import checks, comparison
from include.fine_tuning.operator import OpenAIFineTuneOperator
from include.jobs.files import upload_once
from include.jobs.service import openai_service

CONNECTION = "openai_default"
N_EPOCHS = 3


@dag(
    description="Fine-tunes a model on tickets, compares it with the base model, and promotes the better one.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "pattern", "fine-tuning"],
    doc_md=__doc__,
    params={
        "training_file": Param(
            None,
            type=["null", "string"],
            **limits(maxLength=2000),
            title="Training examples",
            description="URL of a JSONL file on the project's storage; empty: the bundled examples.",
        ),
        "validation_file": Param(
            None,
            type=["null", "string"],
            **limits(maxLength=2000),
            title="Validation examples",
            description="URL as above; none of its questions may be among the training examples.",
        ),
        "budget_usd": Param(
            5.0,
            type=["null", "number"],
            **limits(minimum=0, maximum=100_000),
            title="Budget",
            description="The run stops before the upload if training would cost more US dollars. Empty: no limit.",
        ),
        "margin": Param(
            0.05,
            type="number",
            **limits(minimum=0, maximum=1),
            title="Margin",
            description="How much better than the base model the tuned one must score to be promoted.",
        ),
        "evaluation_size": Param(
            100,
            type="integer",
            **limits(minimum=1, maximum=1000),
            title="Evaluation size",
            description="The most validation examples that both models answer.",
        ),
    },
)
def fine_tuning():
    @task
    def preflight():
        return asyncio.run(checks.preflight(openai_service(CONNECTION)))

    @task
    def validate():
        files = checks.files_of_run(get_current_context()["params"])
        training, validation = checks.check_examples(openai_service(CONNECTION), *files)
        return {"training": training.examples, "validation": validation.examples, "tokens": training.tokens}

    @task(multiple_outputs=True)
    def estimate(examples: dict):
        budget = get_current_context()["params"]["budget_usd"]
        return checks.estimate(openai_service(CONNECTION), examples["tokens"], N_EPOCHS, budget)

    @task(multiple_outputs=True)
    def upload():
        training, validation = checks.files_of_run(get_current_context()["params"])
        service = openai_service(CONNECTION)
        return {
            "training": asyncio.run(upload_once(service, training)),
            "validation": asyncio.run(upload_once(service, validation)),
        }

    @task(**LLM_TASK, map_index_template="{{ model_name }}")
    def answer(model: str):
        context = get_current_context()
        context["model_name"] = model
        examples = checks.evaluation_examples(context["params"])
        return asyncio.run(comparison.answer_all(openai_service(CONNECTION), model, examples))

    @task
    def compare(base_model: str, tuned_model: str, answers: list[list[str]]):
        context = get_current_context()
        examples = checks.evaluation_examples(context["params"])
        by_model = dict(zip([base_model, tuned_model], answers, strict=True))
        return comparison.write_comparison(examples, by_model)

    @task(outlets=[TUNED_MODEL])
    def promote(base_model: str, tuned_model: str, compared: dict):
        score, base_score = (compared["scores"][model]["words"] for model in (tuned_model, base_model))
        if score < base_score + get_current_context()["params"]["margin"]:
            raise AirflowSkipException(
                f"{tuned_model} is not promoted: it scores {score:.2f}, the base {base_score:.2f}."
            )
        extra = {"model": tuned_model, "base_model": base_model, "score": score, "base_score": base_score}
        yield Metadata(TUNED_MODEL, extra)

    base_model = preflight()
    examples = validate()
    estimated = estimate(examples)
    files = upload()
    fine_tune = OpenAIFineTuneOperator(
        task_id="fine_tune",
        conn_id=CONNECTION,
        fine_tuning_file_id=files["training"],
        validation_file_id=files["validation"],
        model=base_model,
        suffix="{{ dag_run.run_id }}",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": N_EPOCHS}}},
        seed=7,
        estimated_usd=estimated["cost_usd"],
    )
    [base_model, estimated] >> files
    answers = answer.expand(model=[base_model, fine_tune.output])
    compared = compare(base_model, fine_tune.output, answers)
    promote(base_model, fine_tune.output, compared)


fine_tuning()
