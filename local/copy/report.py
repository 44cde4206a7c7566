"""The report after a copy, and the table of docs/copying-a-pattern.md.

`python -m local.copy.report` updates that table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from local.copy.lines import lines_of_include
from local.copy.needs import SDKS, Pattern, analyse, own_lines, package, pins_by_sdk
from local.copy.put import KEPT, MANIFEST, Copied
from local.dags import template_dags
from local.environment import PROJECT

PAGE = PROJECT / "docs" / "copying-a-pattern.md"
TABLE = "| DAG | its lines | lines of `include/` | of code | packages | connections |\n|---|--:|--:|--:|---|---|\n"


def report(copied: Copied) -> str:
    """Describe what was copied, and what is left to do."""
    target, pattern = copied.target, copied.pattern
    sdk = f", with {copied.sdk}" if copied.sdk in map(package, pattern.requirements) else ""
    airflow = f"Airflow {'.'.join(map(str, target.airflow))} ({target.image})" if target.airflow else target.image
    lines = [f"Copied {pattern.dag.stem} to {target.folder}, for {airflow}{sdk}:"]
    lines += [f"  {state:<20}  {what}" for what, state in _summary(copied)]
    lines += [f"  {'origin of each file':<20}  {MANIFEST}"]
    if kept := [file for file in copied.files if file.state == KEPT]:
        lines += ["", "Kept, because you have changed them. How the pattern's differ:"]
        lines += [file.diff or f"{file.path}: other data" for file in kept]
    if pattern.requirements:
        lines += [
            "",
            f"Packages, in its {target.packages_file}:",
            *(f"  {_beside(pin, target.packages)}" for pin in pattern.requirements),
        ]
    if copied.ignored:
        lines += ["", f"Added to its .gitignore: {', '.join(copied.ignored)}"]
    if settings := _settings(pattern):
        lines += ["", "Lines for its .env, to fill in (in a deployment: connections and environment variables)."]
        lines += ["Those that start with # are optional."]
        lines += [f"  {line}" for line in settings]
    if pattern.pool:
        lines += [
            "",
            "The pool llm_pool (Admin > Pools, or airflow_settings.yaml): its slots limit the calls at the same time.",
        ]
        lines += ["Without it no task that calls a model starts."]
    own = [f"dags/{pattern.dag.name}:{line.number}: {line.name}{line.note}" for line in own_lines(pattern)]
    own += [f"{folder}/: sample data" for folder in pattern.data_folders]
    lines += ["", "To make it yours:", *(f"  {line}" for line in own)]
    return "\n".join(lines)


def table_row(dag_id: str) -> str:
    """Write the DAG's line of the table, for the AI SDK of this project."""
    pattern = analyse(dag_id, next(iter(pins_by_sdk())))
    packages = sorted({"the AI SDK" if name in SDKS else f"`{name}`" for name in map(package, pattern.requirements)})
    lines = lines_of_include(pattern)
    cells = [
        f"`{dag_id}`",
        str(len((PROJECT / pattern.dag).read_text(encoding="utf-8").splitlines())),
        f"{lines.all:,}",
        f"{lines.code:,}",
        ", ".join(packages),
        ", ".join(f"`{name}`" for name in pattern.connections),
    ]
    return f"| {' | '.join(cells)} |\n"


def _summary(copied: Copied) -> Iterator[tuple[str, str]]:
    """List the files and their states: data by folder."""
    for file in copied.files:
        if file.source not in copied.pattern.data:
            yield str(file.path), file.state
    data = ((f"{file.path.parent}/", file.state) for file in copied.files if file.source in copied.pattern.data)
    for (folder, state), number in Counter(data).items():
        yield f"{folder} (data: {number} file{'s' * (number > 1)})", state


def _beside(pin: str, packages: dict[str, str]) -> str:
    """A pin, and what the project has instead of it."""
    there = packages.get(package(pin) or "", pin).split(" #")[0].strip()
    return pin if there == pin else f"{pin}  (it has {there}: check that they agree)"


def _settings(pattern: Pattern) -> list[str]:
    """A line for each connection and setting: the first example of .env.example."""
    examples = (PROJECT / ".env.example").read_text(encoding="utf-8").splitlines()
    names = [*(f"AIRFLOW_CONN_{name.upper()}" for name in pattern.connections), *pattern.settings]
    found = [next((line[1:] for line in examples if line.startswith(f"#{name}=")), f"{name}=") for name in names]
    return [line if line.startswith("AIRFLOW_CONN_") else f"#{line}" for line in found]


def main() -> None:
    before, _, after = PAGE.read_text(encoding="utf-8").partition(TABLE)
    rest = after.partition("\n\n")[2]
    rows = "".join(table_row(dag_id) for dag_id in sorted(template_dags()))
    PAGE.write_text(f"{before}{TABLE}{rows}" + (f"\n{rest}" if rest else ""), encoding="utf-8")


if __name__ == "__main__":
    main()
