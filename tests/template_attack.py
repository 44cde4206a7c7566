"""Text that runs as code where Airflow renders it, and what can be seen of that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import pytest

RAN = "ran"
# No slash, so that it can be a file's name; short, so that it fits where lengths are limited.
ATTACK = f"{{{{ macros.uuid.os.mkdir('{RAN}') }}}}{{{{ conn.pydanticai_default.password }}}}"


class Watch:
    """What happened while the attacks went on.

    :param folder: the working folder, in which the attack makes another one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiled: list[str] = []

    @property
    def ran(self) -> bool:
        """Whether the attack has run as code."""
        return (self.folder / RAN).exists()

    def assert_nothing_was_rendered(self) -> None:
        """No text that holds the attack was even compiled as a template."""
        assert [source for source in self.compiled if RAN in source] == []
        assert not self.ran


@contextmanager
def watching(folder: Path) -> Iterator[Watch]:
    """Watch every template that this process compiles, with `folder` as its working folder."""
    watch = Watch(folder)
    compile_template = jinja2.Environment.compile

    def spy(self: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        watch.compiled.append(str(source))
        return compile_template(self, source, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(jinja2.Environment, "compile", spy)
        yield watch


def left_behind(run: Any, *folders: Path) -> str:
    """All that a run left: XComs, rendered fields and names of its tasks, and the files in these folders."""
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        run_of = lambda model: select(model).where(model.run_id == run.run.run_id)  # noqa: E731
        found = [json.dumps(row.value) for row in session.scalars(run_of(XComModel))]
        found += [json.dumps(row.rendered_fields) for row in session.scalars(run_of(RenderedTaskInstanceFields))]
    found += [str(ti.rendered_map_index) for ti in run.run.get_task_instances()]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return "\n".join(found + [file.read_bytes().decode(errors="ignore") for file in files])
