"""Every pattern that calls a model, killed (-9) after each answer and before its XCom: no answer is paid twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests import hostile_world as worlds
from tests.conftest import chat_requests
from tests.hostile_world import Conf, World
from tests.killing import kill_tries
from tests.test_dag_contract import calls_a_model

# By pattern: how its model answers, and how many answers it takes without a kill.
PATTERNS: dict[Callable[[World], Conf], int] = {
    worlds.prompt_chaining: 3,  # an answer is sent back
    worlds.routing: 4,  # two are
    worlds.multi_agent: 6,
    worlds.refund_agent: 3,
    worlds.rag_pipeline: 1,
    worlds.rag_evaluation: 2,
    worlds.batch_inference: 2,
    worlds.human_review: 1,
    worlds.evaluator_optimizer: 6,
    worlds.on_demand_inference: 2,  # one is
    worlds.map_partial_expand: 1,
    worlds.any_asset: 1,
    worlds.event_driven_inference: 1,
}
# These keep their answers themselves, and their tests kill them.
OTHER_STORES = {
    "batch_inference_at_scale",
    "batch_api_inference",
    "fine_tuning",
    "stream_inference",
    "sqs_inference",
    "dead_letters",
    "evaluate_prompts",
}


@pytest.fixture
def world(llm: Any, storage: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(llm, storage, request, monkeypatch)


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker: this is about the answers, not about the replies."""
    monkeypatch.setattr("include.messages.kafka.events.send_replies", lambda *_: (1, []))


def model_tasks(dag: Any) -> list[str]:
    return [task.task_id for task in dag.tasks if calls_a_model(task)]


def test_every_dag_whose_tasks_call_a_model_is_killed_here(load_dag):
    from tests.conftest import dag_files

    found = {path.stem for path in dag_files() if model_tasks(load_dag(path.stem))}
    assert found == {pattern.__name__ for pattern in PATTERNS}
    assert not found & OTHER_STORES


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
def test_no_answer_is_paid_twice_whenever_a_task_is_killed(run_dag, load_dag, world, monkeypatch, pattern):
    conf = pattern(world)
    tasks = model_tasks(load_dag(pattern.__name__))
    kill_tries(monkeypatch, {task_id: [1, "end"] for task_id in tasks})
    run = run_dag(pattern.__name__, conf)

    assert run.state == "success"
    asked = [json.dumps(request) for request in chat_requests(world.llm)]
    assert len(asked) == PATTERNS[pattern]
    assert len(set(asked)) == len(asked) or pattern is worlds.batch_inference  # which has the same row twice
    tries = [ti for ti in run.run.get_task_instances() if ti.task_id in tasks and ti.state == "success"]
    assert tries
    assert all(ti.try_number == 3 for ti in tries)
