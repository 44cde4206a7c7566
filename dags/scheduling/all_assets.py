"""
### All of two assets (AND): one digest, once both reviews and tickets have arrived

The schedule *CUSTOMER_REVIEWS & SUPPORT_TICKETS* starts **one** run when both were updated since the last run, in
either order and however often, and then waits for both again. The run counts the topics of the new feedback by source.
"""

from airflow.sdk import dag, task

from include.common.asset_events import files_of, newest_event, triggering_events
from include.common.assets import CUSTOMER_REVIEWS, SUPPORT_TICKETS
from include.common.results import publish, report
from include.common.task_defaults import DEFAULT_ARGS
from include.sample.feedback import count_topics, read_texts, top_topics, topic_table

SOURCES = {"reviews": CUSTOMER_REVIEWS, "tickets": SUPPORT_TICKETS}


@dag(
    description="Runs once two assets have both been updated: a digest of reviews and tickets.",
    schedule=(CUSTOMER_REVIEWS & SUPPORT_TICKETS),
    default_args=DEFAULT_ARGS,
    tags=["genai", "scheduling", "asset"],
    doc_md=__doc__,
)
def all_assets():
    @task(inlets=[CUSTOMER_REVIEWS, SUPPORT_TICKETS])
    def write_digest():
        events = {name: triggering_events(asset) or newest_event(asset) for name, asset in SOURCES.items()}
        texts = {name: read_texts(files_of(found)) for name, found in events.items()}
        counts = {name: count_topics(found) for name, found in texts.items()}
        digest = report("What customers write about", topic_table(counts))
        numbers = " and ".join(f"{len(found)} {name}" for name, found in texts.items())
        return {"digest": publish("digest.md", digest), "result": f"{numbers}: {top_topics(counts)}"}

    write_digest()


all_assets()
