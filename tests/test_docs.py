"""README and docs: commands that can be run, links that lead somewhere, a page and a picture for every DAG."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from include.sample import data
from tests.conftest import PROJECT, dag_files, template_dags
from tests.test_copying_a_pattern import astro_project

PAGES = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md")]
PAGES += sorted((PROJECT / "docs").glob("*.md"))
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
IMAGES = PROJECT / "docs" / "images"

pytestmark = pytest.mark.one_stack
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_dag = pytest.mark.parametrize("dag", dag_files(), ids=lambda path: path.stem)
pattern_dag = pytest.mark.parametrize("dag", dag_files("patterns"), ids=lambda path: path.stem)

# Commands in blocks marked as bash, and what runs each of them. All others are refused by a test below.
RUN_BY = {
    "make demo": "test_end_to_end",
    "make test": "it is what runs this",
    "make demo STACK=common-ai": ".ci/run runs the same tests on that stack",
    "make test STACK=common-ai": ".ci/run",
    '.venv/bin/python examples/ask.py "The app says my password is wrong."': "test_scheduling",
}
# Blocks that a test takes from the page itself, and runs.
TAKEN_BY_A_TEST = [
    r"^TOKEN=\$\(curl",  # test_scheduling
    r"^make copy PATTERN=",  # below
]


def blocks(page: Path, language: str = "bash") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[page], re.DOTALL | re.MULTILINE)


def deleted(path: Path) -> bool:
    """Whether this is the file of a DAG that the template brought, and that its user does without."""
    return path in template_dags().values() and not path.exists()


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\]\([^)]*\)", "", heading).lower() for heading in found]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@every_page
def test_every_command_that_is_marked_as_runnable_is_run_by_a_test(page):
    if page.name == "moving-to-common-ai.md":
        pytest.skip("tests/test_moving_to_common_ai.py runs all of it")
    for block in blocks(page):
        if not any(re.match(start, block) for start in TAKEN_BY_A_TEST):
            for command in block.splitlines():
                assert command in RUN_BY, f"{page.name}: which test runs {command!r}?"


@pytest.mark.needs_dags("rag_pipeline")
def test_make_copy_as_the_docs_write_it(tmp_path):
    (command,) = [block for page in PAGES for block in blocks(page) if block.startswith("make copy")]
    project = astro_project(tmp_path / "project")
    command = command.strip().replace("path/of/your/astro/project", str(project))
    ended = subprocess.run(command, shell=True, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (project / "dags" / "rag_pipeline.py").exists()


@every_page
def test_every_make_target_that_is_named_exists_and_is_in_make_help(page):
    listed = subprocess.run(["make", "help"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    targets = set(re.findall(r"^  make ([a-z]+)", listed, re.MULTILINE)) | {"help"}
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", TEXT[page], re.MULTILINE)) <= targets


@every_page
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|mailto:)([^)]+)\)", TEXT[page]) + re.findall(r'src="([^"]+)"', TEXT[page])
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        assert target.exists() or deleted(target), link
        if anchor:
            assert anchor in headings(target.read_text(encoding="utf-8")), link


@every_page
def test_every_file_that_is_named_exists(page):
    for name in re.findall(
        r"`((?:dags|include|local|tests|docs|common-ai|examples|benchmarks|\.github)/[\w./-]+)`", TEXT[page]
    ):
        path = PROJECT / name
        assert path.exists() or deleted(path) or name.startswith("include/.data"), name


@every_dag
def test_every_dag_is_in_the_readme(dag):
    assert f"({dag.relative_to(PROJECT)})" in TEXT[PROJECT / "README.md"]


@every_dag
def test_every_dag_has_a_page_that_links_to_it(dag):
    linking = [page.name for page in PAGES if f"(../{dag.relative_to(PROJECT)})" in TEXT[page]]
    others = {"opinions.md", "troubleshooting.md", "copying-a-pattern.md", "deploying-to-astronomer.md"}
    assert set(linking) - others, f"no page of docs/ is about {dag.stem}"


@every_dag
def test_every_dag_has_a_picture_of_its_graph(dag):
    picture = IMAGES / "graphs" / f"{dag.stem}.png"
    assert picture.exists(), "make start, make demo, then: .venv/bin/python docs/screenshots.py"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pattern_dag
def test_every_pattern_is_shown_in_the_readme_with_its_graph(dag):
    assert f'src="docs/images/graphs/{dag.stem}.png"' in TEXT[PROJECT / "README.md"]


@pattern_dag
def test_the_page_of_every_pattern_has_a_diagram_and_says_how_it_fails_and_what_it_costs(dag):
    link = f"](../{dag.relative_to(PROJECT)})"
    pages = [text for text in TEXT.values() if link in text.split("```mermaid")[0]]
    assert pages, f"no page has this link before its diagram: {link}"
    assert any("```mermaid" in text and re.search(r"fails", text) for text in pages)


def test_the_counts_of_the_docs_are_those_of_the_project():
    asked, checked = len(data.evaluation_questions()), len(data.questions())
    incidents = len((PROJECT / "include" / "sample" / "incidents.jsonl").read_text().splitlines())
    documents = len(list((PROJECT / "include" / "knowledge_base").iterdir()))
    for page, text in [
        ("README.md", f"{asked} labelled questions"),
        ("README.md", f"checks retrieval with {checked} questions"),
        ("README.md", f"{documents} documents about its product"),
        ("docs/rag.md", f"{asked} questions"),
        ("docs/routing.md", f"{incidents} labelled incidents"),
        ("dags/patterns/rag_evaluation.py", f"the knowledge base {asked} questions"),
    ]:
        if not deleted(PROJECT / page):
            assert text in (PROJECT / page).read_text(encoding="utf-8"), f"{page}: {text}"
    numbers = "[Oo]ne|[Tt]wo|[Tt]hree|[Ff]our|[Ff]ive|[Ss]ix|[Ss]even|[Ee]ight|[Nn]ine|[Tt]en|[0-9]+"
    for page, text in TEXT.items():
        assert not re.search(rf"\b({numbers}) (DAGs|patterns|tests|pages)\b", text), f"{page}: count them here"


def test_the_pictures_are_small():
    sizes = [path.stat().st_size for path in IMAGES.rglob("*.png")]
    assert sum(sizes) < 900_000
    assert max(sizes) < 150_000


def test_every_picture_of_a_graph_is_of_a_dag_that_is_listed_as_the_templates():
    assert {path.stem for path in (IMAGES / "graphs").glob("*.png")} <= template_dags().keys()


def texts_of_the_code() -> str:
    """Every string of include/, local/ and examples/, without the values that are put in, and the Makefile."""
    found = [(PROJECT / "Makefile").read_text()]
    for path in [path for folder in ("include", "local", "examples") for path in (PROJECT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            found.append("{}".join(texts))
    return "\n".join(found)


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code():
    rows = re.findall(r"^\| `([^`]+)` \| ", TEXT[PROJECT / "docs" / "troubleshooting.md"], re.MULTILINE)
    assert len(rows) > 20
    code = texts_of_the_code()
    for message in rows:
        assert message in code, message
