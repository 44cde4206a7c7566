"""
### Asset consumer: runs because the knowledge base was updated

Scheduled on the asset *knowledge_base*, with no time and no sensor. It reads the events that started it and reports
what is new to the support team. **Several updates before it starts become one run with all their events**, so it reads
all of them. Started by hand, it takes the asset's newest event.
"""

import json

from airflow.sdk import dag, task

from include.common.asset_events import files_of, newest_event, triggering_events
from include.common.assets import KNOWLEDGE_BASE
from include.common.markdown import as_markdown_line
from include.common.results import publish, report
from include.common.task_defaults import DEFAULT_ARGS

KINDS = ("added", "changed", "removed")


@dag(
    description="Runs when the knowledge base was updated: lists what is new.",
    schedule=[KNOWLEDGE_BASE],
    default_args=DEFAULT_ARGS,
    tags=["genai", "scheduling", "asset"],
    doc_md=__doc__,
)
def asset_consumer():
    @task(inlets=[KNOWLEDGE_BASE])
    def write_news():
        events = triggering_events(KNOWLEDGE_BASE) or newest_event(KNOWLEDGE_BASE)
        updates = [json.loads(file.read_bytes()) for file in files_of(events, "changes")]
        news = [f"- {kind}: {as_markdown_line(name)}" for update in updates for kind in KINDS for name in update[kind]]
        url = publish("news.md", report("What is new in the knowledge base", "\n".join(news)))
        return {"news": url, "result": f"{len(news)} changes in {len(events)} update(s)"}

    write_news()


asset_consumer()
