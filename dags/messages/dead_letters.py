"""
### Dead letters: count what could not be answered, or put it back on its topic

*stream_inference* puts a message that it cannot read, or that the model never answers, on the topic
*inference_dead_letters*: unchanged, with the reason and its position. This DAG counts them by reason; with *replay* it
puts each back on its topic, once, for example after a sender or the contract was corrected. **A dead letter is
committed only when the broker has the message back.** A message that was too large for the dead letters is read from
storage; one that its topic refuses stays, and the result says why.
"""

from airflow.sdk import Param, dag, get_current_context, task

from include.common.task_defaults import DEFAULT_ARGS
from include.messages.contract import DEAD_LETTERS


@dag(
    description="Counts the messages that could not be answered, or puts them back on their topic.",
    schedule=None,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=["genai", "pattern", "kafka"],
    doc_md=__doc__,
    params={
        "replay": Param(
            False,
            type="boolean",
            title="Replay",
            description="Put them back on their topic, to be answered. Otherwise they are only counted.",
        ),
    },
)
def dead_letters():
    @task
    def count_or_replay():
        from include.messages.kafka.dead_letters import count, replay

        if get_current_context()["params"]["replay"]:
            back, kept = replay(DEAD_LETTERS)
            why = "".join(f"; {number} cannot go back: {reason}" for reason, number in kept.most_common(10))
            return {"kept": dict(kept), "result": f"{back} dead letters are back on their topic{why}"}
        reasons = count(DEAD_LETTERS)
        named = "; ".join(f"{number} x {reason}" for reason, number in reasons.most_common(10))
        return {"reasons": dict(reasons), "result": f"{reasons.total()} dead letters" + (f": {named}" if named else "")}

    count_or_replay()


dead_letters()
