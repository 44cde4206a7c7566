"""The knowledge base: documents, read and cut into chunks."""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from airflow.providers.common.compat.sdk import AirflowFailException
from markdown_it import MarkdownIt
from semantic_text_splitter import MarkdownSplitter, TextSplitter

from include.common.text import whole_characters
from include.rag.formats import TEXT, read_text

CHUNK_CHARACTERS = 800  # about 200 tokens: one or two sections of a help page
CHUNK_OVERLAP = 100
LONGEST_TITLE = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One file: its name below the knowledge base, its title (the first line), its whole text, and its format.

    `checksum` changes with the bytes of the file, and with how documents are cut.
    """

    source: str
    title: str
    text: str
    checksum: str
    format: str


@dataclass(frozen=True)
class Chunk:
    """A piece of a document. `id` is the uuid5 of source and position, so a second run writes the same rows.

    `text` is what is embedded, searched and shown to a model: the path of headings that lead to the piece, such as
    "Webhooks > Retries", as the first line, and the piece below it. `checksum` is that of `text`: two chunks that share
    it share their vector. `document_checksum` and `document_chunks` show whether a document is stored completely.
    """

    id: str
    source: str
    title: str
    headings: str
    position: int
    text: str
    format: str
    checksum: str
    document_checksum: str
    document_chunks: int


def knowledge_base() -> Path:
    """Return the folder of the documents: GENAI_KNOWLEDGE_BASE, which every worker must see, or that of the project."""
    return Path(os.environ.get("GENAI_KNOWLEDGE_BASE") or Path(__file__).parents[1] / "knowledge_base")


def document_names() -> list[str]:
    """List all files in the knowledge base and below, readable or not, except hidden ones (.gitkeep).

    A file whose name is not UTF-8 is left out, with an error in the log: no database takes its name.

    :raises ValueError: there are none, as in a folder that was not deployed.
    """
    folder = knowledge_base()
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    found = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    names = [name for name in found if name == whole_characters(name)]
    for name in set(found) - set(names):
        log.error("Left out: %r, whose name is not UTF-8. Rename it.", os.fsencode(name))
    if not names:
        raise ValueError(
            f"There are no documents in {folder}. Deploy them with the project, or set GENAI_KNOWLEDGE_BASE to their "
            "folder on every worker. The index stays as it is."
        )
    return names


def file_checksum(name: str) -> str:
    """Compute the `Document.checksum` of a file without parsing it; another one if it cannot be read."""
    try:
        with (knowledge_base() / name).open("rb") as file:
            return _document_checksum(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return _document_checksum("unreadable")  # `read_document` says why


def read_document(name: str) -> Document:
    """Read the document of this name.

    :raises AirflowFailException: there is none; the message lists those that there are.
    :raises include.rag.formats.UnreadableDocument: it cannot be used.
    """
    path = knowledge_base() / name
    if Path(name).is_absolute() or ".." in path.parts or not path.is_file():
        raise AirflowFailException(f"There is no document {name!r}. There are: {', '.join(document_names())}.")
    file = read_text(path, name)
    title = file.text.split("\n", 1)[0].lstrip("# ")[:LONGEST_TITLE]
    return Document(name, title, file.text, _document_checksum(file.sha256), file.format)


def split_document(document: Document) -> list[Chunk]:
    """Cut a document along its structure into overlapping chunks of at most CHUNK_CHARACTERS, headings not counted."""
    splitter = TextSplitter if document.format == TEXT else MarkdownSplitter
    pieces = splitter(CHUNK_CHARACTERS, overlap=CHUNK_OVERLAP).chunk_indices(document.text)
    starts, paths = ([], []) if document.format == TEXT else _headings(document.text)
    chunks = []
    for position, (start, text) in enumerate(pieces):
        # With its overlap, a chunk begins in the section before its own: the middle says where it belongs.
        section = bisect_right(starts, start + len(text) // 2)
        headings = paths[section - 1] if section else document.title
        text = f"{headings}\n{text}"
        chunks.append(
            Chunk(
                id=str(uuid5(NAMESPACE_URL, f"{document.source}#{position}")),
                source=document.source,
                title=document.title,
                headings=headings,
                position=position,
                text=text,
                format=document.format,
                checksum=_checksum(text),
                document_checksum=document.checksum,
                document_chunks=len(pieces),
            )
        )
    return chunks


def _headings(text: str) -> tuple[list[int], list[str]]:
    """Find where each Markdown heading starts, in characters, and the path of headings down to it."""
    line_starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    tokens = _block_parser().parse(text)
    starts, paths = [], []
    above: list[tuple[int, str]] = []
    for token, content in pairwise(tokens):
        if token.type == "heading_open" and token.map:
            level = int(token.tag[1:])
            above = [heading for heading in above if heading[0] < level] + [(level, content.content)]
            starts.append(line_starts[token.map[0]])
            paths.append(" > ".join(name for _, name in above if name)[: 2 * LONGEST_TITLE])
    return starts, paths


@cache
def _block_parser() -> MarkdownIt:
    """Make a parser of Markdown's blocks, all that is needed. Making it takes longer than most documents do."""
    return MarkdownIt("commonmark").disable(["inline", "text_join"])


def _document_checksum(sha256: str) -> str:
    return _checksum(str(CHUNK_CHARACTERS), str(CHUNK_OVERLAP), sha256)


def _checksum(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
