"""`include.common.templates`: whatever way text from outside takes to a task, Airflow does not render it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import BaseOperator, dag, get_current_context, task, task_group

from include.ai import llm_kwargs, untrusted
from include.ai.agents import agent_kwargs
from include.common.task_defaults import DEFAULT_ARGS
from tests.conftest import KEY, chat_requests
from tests.template_attack import ATTACK, Watch, left_behind, watching

NESTED = {"text": ATTACK, "more": [ATTACK, {"deep": ATTACK}]}


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    with watching(tmp_path) as found:
        yield found


def a_dag(build: Callable[[], Any]) -> Any:
    return dag(dag_id=build.__name__, schedule=None, default_args=DEFAULT_ARGS)(build)()


class Echo(BaseOperator):
    """Returns its template fields."""

    template_fields = ("first", "second")

    def __init__(self, *, first: Any, second: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = first
        self.second = second

    def execute(self, context: Any) -> list[Any]:
        return [self.first, self.second]


@task
def outside():
    """Text from outside, as a task returns it."""
    return [{"first": ATTACK, "second": NESTED}]


@task
def echo(first, second=None):
    return [first, second]


def called():
    @task(multiple_outputs=True)
    def element(items):
        return items[0]

    found = element(outside())
    echo.override(task_id="it")(found["first"], found)


def in_a_field_of_an_operator():
    Echo(task_id="it", first=outside())


def in_a_list_of_the_author():
    echo.override(task_id="it")([outside(), "{{ ds }}"])


def expand():
    echo.override(task_id="it").expand(first=outside())


def expand_of_a_map():
    @task
    def texts():
        return {"a": ATTACK}

    echo.override(task_id="it").expand(first=texts())


def expand_of_a_list_of_the_author():
    echo.override(task_id="it").expand(first=[outside()])


def expand_of_an_operator():
    Echo.partial(task_id="it").expand(first=outside())


def partial():
    echo.override(task_id="it").partial(second=outside()).expand(first=[1])


def expand_kwargs():
    echo.override(task_id="it").expand_kwargs(outside())


def expand_kwargs_of_an_operator():
    Echo.partial(task_id="it").expand_kwargs(outside())


def expand_kwargs_of_op_args():
    @task
    def arguments():
        return [{"op_args": [ATTACK], "op_kwargs": {"second": NESTED}}]

    PythonOperator.partial(task_id="it", python_callable=echo.function).expand_kwargs(arguments())


def expand_kwargs_of_what_mapped_tasks_returned():
    @task
    def make(n):
        return {"first": ATTACK, "second": NESTED}

    echo.override(task_id="it").expand_kwargs(make.expand(n=[1]))


def expand_kwargs_of_single_results():
    @task
    def one():
        return {"first": ATTACK, "second": NESTED}

    echo.override(task_id="it").expand_kwargs([one()])


def expand_kwargs_of_changed_results():
    def changed(item):
        return {**item, "second": [item["second"], f"changed: {item['first']}"]}

    echo.override(task_id="it").expand_kwargs(outside().map(changed))


def expand_kwargs_of_zipped_results():
    def pair(items):
        return {"first": items[0]["first"], "second": items[1]}

    found = outside()
    echo.override(task_id="it").expand_kwargs(found.zip(outside.override(task_id="more")()).map(pair))


def a_mapped_group():
    @task_group
    def group(first):
        echo.override(task_id="it")(first)

    group.expand(first=outside())


def a_group_mapped_by_kwargs():
    @task_group
    def group(first, second):
        echo.override(task_id="it")(first, second)
        Echo(task_id="more", first=first, second=second)

    group.expand_kwargs(outside())


def a_sensor():
    @task.sensor(poke_interval=1, timeout=5)
    def it(first, second):
        from airflow.sdk import PokeReturnValue

        return PokeReturnValue(is_done=True, xcom_value=[first, second])

    it.expand_kwargs(outside())


def a_branch():
    @task.branch
    def it(first, second):
        assert [first, second] == [ATTACK, NESTED]
        return "echo"

    it.expand_kwargs(outside()) >> echo(1)


def a_bash_command_that_a_function_returns():
    @task.bash
    def it(first, second):
        return f"cat <<'END'\n{first}\nEND"

    it.expand_kwargs(outside())


def a_bash_command_of_an_operator():
    @task
    def commands():
        return [{"bash_command": f"cat <<'END'\n{ATTACK}\nEND"}]

    BashOperator.partial(task_id="it").expand_kwargs(commands())


def a_model():
    @task.llm(**llm_kwargs(), system_prompt="Answer.")
    def it(first, second):
        return f"{first} {second}"

    it.expand_kwargs(outside())


def an_agent():
    @task.agent(**agent_kwargs(system_prompt="Answer.", tools=[lambda: ATTACK]))
    def it(first, second):
        return untrusted(f"{first} {second}")

    it.expand_kwargs(outside())


FORMS = [
    called,
    in_a_field_of_an_operator,
    in_a_list_of_the_author,
    expand,
    expand_of_a_map,
    expand_of_a_list_of_the_author,
    expand_of_an_operator,
    partial,
    expand_kwargs,
    expand_kwargs_of_an_operator,
    expand_kwargs_of_op_args,
    expand_kwargs_of_what_mapped_tasks_returned,
    expand_kwargs_of_single_results,
    expand_kwargs_of_changed_results,
    expand_kwargs_of_zipped_results,
    a_mapped_group,
    a_group_mapped_by_kwargs,
    a_sensor,
    a_branch,
    a_bash_command_that_a_function_returns,
    a_bash_command_of_an_operator,
    a_model,
    an_agent,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_what_a_task_returned_reaches_the_next_one_as_it_is(run_any_dag, llm, watch, logged, form):
    llm.reply(ATTACK, times=None)
    run = run_any_dag(a_dag(form))

    left = left_behind(run)

    assert run.state == "success", logged()
    assert ATTACK in left
    watch.assert_nothing_was_rendered()
    assert KEY not in left + str(chat_requests(llm))


def named_by_expand_kwargs():
    @task
    def fields():
        return [{"first": 1, "map_index_template": ATTACK}]

    @task
    def it(**given):
        return given

    it.expand_kwargs(fields())


def named_by_a_dict_of_arguments():
    @task
    def fields():
        return {"map_index_template": ATTACK}

    PythonOperator(task_id="it", python_callable=lambda **given: given, op_kwargs=fields())


@pytest.mark.parametrize("form", [named_by_expand_kwargs, named_by_a_dict_of_arguments], ids=lambda form: form.__name__)
def test_the_name_of_an_argument_cannot_make_it_the_tasks_name(run_any_dag, storage, watch, logged, form):
    run = run_any_dag(a_dag(form))

    assert run.state == "failed"
    assert "it got an argument 'map_index_template', which Airflow would render" in logged()
    watch.assert_nothing_was_rendered()


def test_the_attack_works_where_the_author_of_a_dag_writes_it(run_any_dag, llm, watch):
    def written_by_the_author():
        echo.override(task_id="it")(first=ATTACK)

    assert run_any_dag(a_dag(written_by_the_author)).xcom("it")[0].endswith(KEY)
    assert watch.ran


def test_templates_of_the_author_are_rendered_mapped_or_not(run_any_dag, storage):
    def templates():
        Echo(task_id="field", first="{{ dag.dag_id }}")
        echo.override(task_id="expanded").expand(first=["{{ dag.dag_id }}"])
        echo.override(task_id="by_kwargs", map_index_template="{{ dag.dag_id }}").expand_kwargs(
            [{"first": "{{ dag.dag_id }}", "second": ["{{ dag.dag_id }}"]}]
        )

    run = run_any_dag(a_dag(templates))

    assert run.xcom("field") == ["templates", None]
    assert run.xcom("expanded", map_index=0) == ["templates", None]
    assert run.xcom("by_kwargs", map_index=0) == ["templates", ["templates"]]
    assert run.task_instance("by_kwargs", 0).rendered_map_index == "templates"


def test_the_name_of_a_mapped_task_is_one_line_that_every_database_takes(run_any_dag, storage):
    def names():
        @task(map_index_template="{{ first }} to {{ last }}")
        def index(fails: bool):
            context = get_current_context()
            context["first"], context["last"] = "a\0b\ud83d\n" + "c" * 130, "d" * 500
            if fails:
                raise ValueError("after it has its name")

        index.override(retries=0).expand(fails=[False, True])

    run = run_any_dag(a_dag(names))

    assert run.states() == {"index[0]": "success", "index[1]": "failed"}
    for number in range(2):
        assert run.task_instance("index", number).rendered_map_index == f"a b {'c' * 130} to {'d' * 112}"
