"""Text from outside is data, never a template. A DAG gets this with its `DEFAULT_ARGS`.

Airflow renders a task's template fields, among them every argument of a `@task` function, just before the task runs.
What another task returned is not rendered, with three exceptions, all closed here:

- `expand_kwargs` over what a task returned renders each value. `{{ ... }}` in a param or in a model's answer would run
  on the worker, with access to every connection.
- Some decorators render again what the function returned: those of the common-ai provider, and `@task.bash`.
- An argument named `map_index_template` replaces the task's own, and is rendered as the task's name.

A name that a `map_index_template` gives to a mapped task is text from outside, too: it is cut to one line that fits
Airflow's database, as PostgreSQL would otherwise fail the task after its work is done.

What the author of a DAG writes (`suffix="{{ dag_run.run_id }}"`, a `map_index_template`) is rendered as usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

# Airflow has no setting for this. If the class moves, this import fails, and no DAG runs without the protection.
from airflow.sdk.definitions._internal.expandinput import ListOfDictsExpandInput

from include.common.shown import shown_text

if TYPE_CHECKING:
    from airflow.sdk import Context

# The length of Airflow's column `rendered_map_index`.
LONGEST_TASK_NAME = 250

_resolve = ListOfDictsExpandInput.resolve


def resolve_as_data(self: Any, context: Mapping[str, Any]) -> tuple[Mapping[str, Any], set[int]]:
    """Resolve the arguments of one mapped task as Airflow does, but treat what another task returned as rendered.

    :returns: the keyword arguments, and the ids of the values that are not rendered again.
    """
    kwargs, rendered = _resolve(self, context)
    in_the_dag_file = isinstance(self.value, Sequence) and isinstance(self.value[context["ti"].map_index], Mapping)
    return kwargs, rendered if in_the_dag_file else rendered | {id(value) for value in kwargs.values()}


ListOfDictsExpandInput.resolve = resolve_as_data  # type: ignore[method-assign]


def end_rendering(context: Context) -> None:
    """Stop rendering the task, except its name: its templates are rendered already, and what follows is from outside.

    A task's own `pre_execute` replaces this one, and must call it.

    :raises AirflowFailException: an argument would be rendered as the task's name.
    """
    task: Any = context["task"]
    if "map_index_template" in (getattr(task, "op_kwargs", None) or {}):
        raise AirflowFailException(
            f"{task.task_id} got an argument 'map_index_template', which Airflow would render as a template. "
            "If the names of arguments come from outside, pass them in one argument, as a dict."
        )
    task.template_fields = ()
    variables: dict[str, Any] = context  # type: ignore[assignment]
    if template := variables.get("map_index_template"):  # Airflow renders it when the task has ended
        variables["map_index_template"] = f"{{% set _whole %}}{template}{{% endset %}}{{{{ _shown(_whole) }}}}"
        variables["_shown"] = partial(shown_text, longest=LONGEST_TASK_NAME)
