"""What each DAG meets outside, all of it hostile: messages, files, names, answers of models and people, and params."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators.hitl import HITLOperator
from llmock.scenarios import Match, Reply, ToolCall

from include.common.storage import storage_path, write_artifact
from include.evaluation.subjects import Subject
from include.messages.contract import DEAD_LETTERS, STREAM_REQUESTS, new_request
from include.messages.kafka.dead_letters import PREFIX
from include.rag.documents import knowledge_base
from include.rag.ingestion import refresh_index
from include.spend.ledger import Line, Record
from tests.emulator import Emulator
from tests.template_attack import ATTACK
from tests.test_chat_examples import conversation
from tests.test_sqs_inference import Queue


class World:
    """What a DAG meets outside, all of it hostile."""

    def __init__(self, llm: Any, storage: Path, request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> None:
        self.llm, self.storage, self.patch, self.fixture = llm, storage, patch, request.getfixturevalue

    def answers(self, *answers: dict[str, Any] | str) -> None:
        """What the model answers, in this order: an object, or a text."""
        for answer in answers:
            calls = () if isinstance(answer, str) else (ToolCall("final_result", answer),)
            text = answer if isinstance(answer, str) else ""
            self.llm.add(Reply(text=text, tool_calls=calls, match=Match(path="*/chat/completions")))

    def always(self, answer: dict[str, Any]) -> None:
        self.llm.add(
            Reply(tool_calls=(ToolCall("final_result", answer),), times=None, match=Match(path="*/chat/completions"))
        )

    def file(self, name: str, *rows: dict[str, Any]) -> str:
        """The URL of a file of JSON lines on the project's storage."""
        self.storage.mkdir(exist_ok=True)
        (self.storage / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return (self.storage / name).as_uri()

    def knowledge_base(self) -> None:
        """A document whose name, title and text are the attack, and an honest one."""
        folder = self.storage.parent / "knowledge_base"
        folder.mkdir()
        shutil.copy(knowledge_base() / "free-trial.md", folder)
        (folder / f"{ATTACK}.md").write_text(f"# {ATTACK}\n\nA reset link is valid for 60 minutes. {ATTACK}\n")
        self.patch.setenv("GENAI_KNOWLEDGE_BASE", str(folder))

    def events(self, *extras: dict[str, Any]) -> None:
        """Start each run by events that carry these."""
        events = [
            SimpleNamespace(asset=SimpleNamespace(name="asset"), timestamp=number, extra=extra)
            for number, extra in enumerate(extras)
        ]
        self.patch.setattr("include.common.asset_events.triggering_events", lambda *assets: events)

    def service(self) -> Emulator:
        """The emulator of fine-tuning and batches, on the scripted model."""
        service: Emulator = self.fixture("service")
        return service


Conf = dict[str, Any]


def prompt_chaining(world: World) -> Conf:
    world.answers(
        {"category": "technical", "urgency": "high", "key_issues": [ATTACK]},
        {"subject": ATTACK, "message": f"Dear customer, {ATTACK}"},
    )
    return {"ticket": ATTACK}


def routing(world: World) -> Conf:
    world.answers({"response": ATTACK}, {"response": "handle_low"}, {"response": [ATTACK]}, {"response": ["billing"]})
    return {"incident": ATTACK}


def multi_agent(world: World) -> Conf:
    world.answers({"market_research": [ATTACK], "financial_analysis": [ATTACK]})
    for tool in ("search_market_facts", "financial_figures"):
        world.llm.call_tool(tool, {"company": ATTACK, "topic": ATTACK}).reply(ATTACK)
    world.answers({"answer": f"A sound company. {ATTACK}", "open_questions": [ATTACK]})
    return {"company": "Tretwald", "question": ATTACK}


def rag_pipeline(world: World) -> Conf:
    world.knowledge_base()
    world.always({"answer": ATTACK, "answered": True, "passages": [1]})
    filters = {"source": [ATTACK, f"{ATTACK}.md"], "title": [ATTACK]}
    return {"query": ATTACK, "min_score": -1, "filters": filters, "mode": "vector"}


def rag_evaluation(world: World) -> Conf:
    world.knowledge_base()
    world.always({"answer": ATTACK, "answered": True, "passages": [1]})
    return {"stores": ["vector_store_default"], "min_recall": 0, "answers": 2, "min_grounded": 0}


def batch_inference(world: World) -> Conf:
    world.always({"sentiment": "positive", "summary": ATTACK})
    return {"reviews": [ATTACK, ATTACK]}


def batch_inference_at_scale(world: World) -> Conf:
    world.always({"sentiment": "positive", "topic": "app"})
    rows = world.file("rows.jsonl", {ATTACK: ATTACK, f"{ATTACK}id": ATTACK})
    return {"input": rows, "text_column": ATTACK, "id_column": f"{ATTACK}id", "batch": ATTACK, "output_format": "jsonl"}


def batch_api_inference(world: World) -> Conf:
    world.service()
    world.llm.reply(ATTACK, times=None)
    rows = world.file("rows.jsonl", {ATTACK: ATTACK, f"{ATTACK}id": ATTACK})
    conf = {"input": rows, "text_column": ATTACK, "id_column": f"{ATTACK}id", "output_format": "jsonl"}
    return conf | {"allowed_failures": 1}


def fine_tuning(world: World) -> Conf:
    world.service()
    world.llm.reply(ATTACK, times=None)
    examples = [conversation(n, user=f"{n} {ATTACK}", assistant=ATTACK) for n in range(24)]
    training, validation = world.file("a.jsonl", *examples[:12]), world.file("b.jsonl", *examples[12:])
    return {"training_file": training, "validation_file": validation, "evaluation_size": 1, "margin": 0}


def human_review(world: World) -> Conf:
    world.always({"reply": ATTACK})
    person = {"responded_by_user": {"id": ATTACK, "name": ATTACK}, "responded_at": ATTACK}
    decision = {"chosen_options": ["Approve"], "params_input": {"reply": f"Edited. {ATTACK}"}, **person}
    world.patch.setattr(HITLOperator, "execute", lambda self, context: [self.subject, self.body] and decision)
    return {"tickets": [ATTACK]}


def on_demand_inference(world: World) -> Conf:
    world.answers({"category": "technical", "summary": ATTACK})
    return {"message": ATTACK}


def map_expand(world: World) -> Conf:
    return {"messages": [ATTACK, ""]}


def map_expand_kwargs(world: World) -> Conf:
    return {"answers": [ATTACK, "60"], "expected": [ATTACK, ATTACK]}


def map_partial_expand(world: World) -> Conf:
    world.knowledge_base()
    world.llm.reply(ATTACK, times=None)
    return {"documents": [ATTACK, f"{ATTACK}.md"], "audience": ATTACK}


def map_task_group(world: World) -> Conf:
    return {"companies": [ATTACK, "Tretwald"]}


def stream_inference(world: World) -> Conf:
    world.patch.setattr("include.messages.kafka.stream.LINGER_S", 0.3)
    world.always({"category": "technical", "summary": ATTACK})
    request = new_request(ATTACK, echo=ATTACK).model_dump_json().encode()
    world.fixture("kafka").send(STREAM_REQUESTS, [request, ATTACK.encode()], key=ATTACK.encode())
    return {"budget_s": 60}


def dead_letters(world: World) -> Conf:
    headers = [(name, ATTACK.encode()) for name in (f"{PREFIX}reason", f"{PREFIX}topic", ATTACK)]
    world.fixture("kafka").send(DEAD_LETTERS, [ATTACK.encode()], key=ATTACK.encode(), headers=headers)
    return {}


def event_driven_inference(world: World) -> Conf:
    world.fixture("kafka")
    world.always({"category": "technical", "summary": ATTACK})
    request = new_request(ATTACK, echo=ATTACK).model_dump(mode="json")
    place = {"topic": ATTACK, "partition": 0, "offset": 0}
    world.events({"payload": {**place, "error": None, "request": request}}, {"payload": {**place, "error": ATTACK}})
    return {}


def sqs_inference(world: World) -> Conf:
    url = world.fixture("sqs")
    world.patch.setenv("GENAI_SQS_QUEUE", url)
    world.always({"category": "technical", "summary": ATTACK})
    queue = Queue(url)
    queue.ask(ATTACK, echo=ATTACK)
    queue.send(ATTACK)
    world.events({"payload": ATTACK}, *(event.extra for event in queue.events()))
    return {}


def all_assets(world: World) -> Conf:
    world.events({"file": ATTACK}, {"file": world.file("texts.jsonl", {"text": ATTACK})})
    return {}


def any_asset(world: World) -> Conf:
    world.llm.reply(ATTACK)
    return all_assets(world)


def asset_consumer(world: World) -> Conf:
    changes = world.file("changes.json", {"added": [ATTACK], "changed": [ATTACK], "removed": [ATTACK]})
    world.events({"changes": ATTACK}, {"changes": changes})
    return {}


def asset_or_time(world: World) -> Conf:
    world.knowledge_base()
    refresh_index()
    world.events({"changes": ATTACK})
    return {}


def asset_producer(world: World) -> Conf:
    world.knowledge_base()
    return {}


def evaluate_prompts(world: World) -> Conf:
    cases = world.storage.parent / "cases"
    cases.mkdir()
    case = {"input": ATTACK, "expected": {"sentiment": "positive"}, "tags": [ATTACK]}
    (cases / "reviews.jsonl").write_text(json.dumps(case) + "\n")
    read = Subject.read_cases
    world.patch.setattr(
        Subject, "read_cases", lambda self, limit=None: read(replace(self, cases=cases / self.cases.name), limit)
    )
    world.always({"sentiment": "negative", "summary": ATTACK})
    return {"subjects": ["sentiment"]}


def evaluator_optimizer(world: World) -> Conf:
    for number in range(3):  # no two alike, so that no two requests are
        world.answers(
            {"reply": f"Dear customer {number}, {ATTACK}"}, {"reason": f"{number}: {ATTACK}", "passed": False}
        )
    person = {"responded_by_user": {"id": ATTACK, "name": ATTACK}, "responded_at": ATTACK}
    decision = {"chosen_options": ["Approve"], "params_input": {"reply": f"Edited. {ATTACK}"}, **person}
    world.patch.setattr(HITLOperator, "execute", lambda self, context: [self.subject, self.body] and decision)
    return {"ticket": ATTACK, "must_say": [ATTACK]}


def spend_report(world: World) -> Conf:
    now = datetime.now(UTC)
    line = Line(kind="chat", conn_id=ATTACK, model=ATTACK, prompt=ATTACK, calls=1)
    where = {"dag_id": ATTACK, "run_id": ATTACK, "task_id": ATTACK, "map_index": -1, "try_number": 1}
    record = Record(id="one", logical_date=None, started=now, updated=now, state="success", lines=[line], **where)
    write_artifact(storage_path(*record.file), record.model_dump_json())
    return {"day": now.date().isoformat()}


def canary_report(world: World) -> Conf:
    extra = {"model": "openai-chat:usual", "canary": {"conn_id": ATTACK, "share": 1}}
    world.patch.setenv("AIRFLOW_CONN_USUAL", json.dumps({"conn_type": "pydanticai", "extra": extra}))
    spend_report(world)
    line = Line(kind="chat", conn_id="usual", model=ATTACK, prompt=ATTACK, calls=1)
    where = {"dag_id": ATTACK, "run_id": f"{ATTACK}2", "task_id": ATTACK, "map_index": -1, "try_number": 1}
    now = datetime.now(UTC)
    record = Record(id="two", logical_date=None, started=now, updated=now, state="success", lines=[line], **where)
    write_artifact(storage_path(*record.file), record.model_dump_json())
    return {}


def refund_agent(world: World) -> Conf:
    world.llm.call_tool("refund", {"amount_eur": 1, "reason": ATTACK})
    world.llm.call_tool("write_to_customer", {"text": ATTACK})
    world.answers({"summary": ATTACK, "needs_a_person": True})
    return {"message": ATTACK}


def forget_answers(world: World) -> Conf:
    write_artifact(storage_path("stored_answers", "runs", "a_dag", "a_run", "ask.-1.0", "key-1.json"), ATTACK)
    write_artifact(storage_path("stored_answers", "shared", "conn", "ke", "key-1.json"), ATTACK)
    return {"dag_id": ATTACK, "run_id": ATTACK, "key": ATTACK}


def price_of_backfill(world: World) -> Conf:
    rows = world.file("rows.jsonl", {ATTACK: ATTACK})
    return {"input": rows, "text_column": ATTACK, "id_column": ATTACK, "batch": ATTACK}


ATTACKS: list[Callable[[World], Conf]] = [
    prompt_chaining,
    routing,
    multi_agent,
    refund_agent,
    rag_pipeline,
    rag_evaluation,
    batch_inference,
    batch_inference_at_scale,
    batch_api_inference,
    fine_tuning,
    human_review,
    on_demand_inference,
    map_expand,
    map_expand_kwargs,
    map_partial_expand,
    map_task_group,
    stream_inference,
    dead_letters,
    event_driven_inference,
    sqs_inference,
    all_assets,
    any_asset,
    asset_consumer,
    asset_or_time,
    asset_producer,
    spend_report,
    canary_report,
    evaluate_prompts,
    evaluator_optimizer,
    forget_answers,
    price_of_backfill,
]
# Params whose attack ends the run before anything else is attacked.
BAD_PARAMS: dict[str, Conf] = {
    "price_of_backfill": {"dag_id": ATTACK, "input": ATTACK},
    "rag_pipeline": {"rerank": ATTACK},
    "rag_evaluation": {"stores": [ATTACK], "rerank": ATTACK},
    "evaluate_prompts": {"subjects": ["replies"], "limit": 1, "conn_id": ATTACK, "judge_conn_id": ATTACK},
    "batch_inference_at_scale": {"input": ATTACK},
    "batch_api_inference": {"input": ATTACK},
    "fine_tuning": {"training_file": ATTACK, "validation_file": ATTACK},
}
# Of what comes from outside they take numbers and a choice among fixed words only.
WITHOUT_TEXT = {"feedback_intake", "map_chunks"}
