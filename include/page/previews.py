"""Previews of a run's files: Markdown as text, pictures, the first rows of tables, JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from include.common.shown import shown_text

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

IMAGES = {".svg": "image/svg+xml", ".png": "image/png"}
# Bytes of a file that are read for its preview; rows, columns and characters of a cell that are shown; files of a run.
MOST_BYTES = 100_000
MOST_ROWS = 20
MOST_COLUMNS = 40
LONGEST_CELL = 300
MOST_PREVIEWS = 20
LARGEST_IMAGE = 5_000_000

# Text may be a model's: no HTML, no pictures from elsewhere; links lead to http(s) and mail addresses only.
_markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


@dataclass
class Preview:
    """A file and what is shown of it: `kind` is `text`, `image`, `table`, `code` or `none`."""

    name: str
    size: int = 0
    kind: str = "none"
    html: Markup = field(default_factory=Markup)
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


def as_markdown(text: str) -> Markup:
    """Render Markdown from anyone as HTML that loads and runs nothing."""
    return Markup(_markdown.render(text))  # noqa: S704 (rendered without HTML of its own)


def previews(files: Mapping[str, ObjectStoragePath]) -> list[Preview]:
    """Return the previews of a run's files: reports first, then pictures, then the rest."""
    ordered = sorted(files, key=lambda name: (not name.endswith(".md"), not name.endswith(tuple(IMAGES)), name))
    return [
        preview(name, files[name]) if number < MOST_PREVIEWS else Preview(name, note="Not shown: too many files.")
        for number, name in enumerate(ordered)
    ]


def preview(name: str, file: ObjectStoragePath) -> Preview:
    """Return the preview of a file. If it cannot be read, its note says so."""
    try:
        size = file.stat().st_size
        shown = Preview(name, size)
        if file.suffix in IMAGES and size > LARGEST_IMAGE:
            shown.note = "It is too large to be shown here."
        elif file.suffix in IMAGES:
            shown.kind = "image"
        elif file.suffix == ".parquet":
            _parquet(shown, file)
        elif file.suffix in (".md", ".json", ".jsonl", ".csv", ".txt"):
            with file.fs.open(file.path, "rb") as stream:
                content = stream.read(MOST_BYTES)
            _text(shown, file.suffix, content.decode("utf-8", "replace"), is_whole=size <= MOST_BYTES)
    except Exception as error:
        return Preview(name, note=f"It cannot be shown: {shown_text(error)}")
    return shown


def _text(shown: Preview, suffix: str, text: str, *, is_whole: bool) -> None:
    if not is_whole:
        shown.note = f"The first {MOST_BYTES // 1000} kB."
    if suffix == ".md":
        shown.kind, shown.html = "text", as_markdown(text)
        return
    if suffix in (".jsonl", ".csv"):
        lines = text.split("\n")
        whole = [line for line in (lines if is_whole else lines[:-1]) if line.strip()]
        first = whole[: MOST_ROWS + (suffix == ".csv")]  # a CSV file has its head, too
        _table(shown, list(csv.DictReader(first)) if suffix == ".csv" else [json.loads(line) for line in first])
        if len(whole) > len(first):
            shown.note = f"The first {MOST_ROWS} rows. {shown.note}"
        return
    if suffix == ".json" and is_whole:
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    shown.kind, shown.html = "code", escape(text)


def _parquet(shown: Preview, file: ObjectStoragePath) -> None:
    from pyarrow import parquet

    with file.fs.open(file.path, "rb") as stream:
        content = parquet.ParquetFile(stream)
        batch = next(content.iter_batches(MOST_ROWS, columns=content.schema_arrow.names[:MOST_COLUMNS]), None)
        _table(shown, batch.to_pylist() if batch else [])
        total, columns = content.metadata.num_rows, len(content.schema_arrow.names)
    if total > MOST_ROWS:
        shown.note = f"The first {MOST_ROWS} of {total:,} rows. {shown.note}"
    if columns > MOST_COLUMNS:
        shown.note += f"The first {MOST_COLUMNS} of {columns:,} columns."


def _table(shown: Preview, rows: list[Any]) -> None:
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    shown.kind, shown.columns = "table", columns[:MOST_COLUMNS]
    if len(columns) > MOST_COLUMNS:
        shown.note += f" The first {MOST_COLUMNS} of {len(columns):,} columns."
    shown.rows = [[row.get(name, "") for name in shown.columns] for row in flat]


def _flat(row: Any) -> dict[str, str]:
    """Return a row's cells; fields of an object in it become columns of their own."""
    cells: dict[str, Any] = {}
    for name, value in (row if isinstance(row, dict) else {"value": row}).items():
        cells |= (
            {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {str(name): value}
        )
    return {name: _cell(value) for name, value in cells.items()}


def _cell(value: Any) -> str:
    text = (
        value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    )
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}…"
