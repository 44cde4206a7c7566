"""The knowledge base: Markdown documents, read and cut into chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from airflow.providers.common.compat.sdk import AirflowFailException

KNOWLEDGE_BASE = Path(__file__).parent / "knowledge_base"

CHUNK_CHARACTERS = 800  # about 200 tokens: one or two sections of a help page
CHUNK_OVERLAP = 100


@dataclass(frozen=True)
class Document:
    """One file: its name, its title (the first heading) and its whole text."""

    source: str
    title: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(f"{CHUNK_CHARACTERS}:{CHUNK_OVERLAP}:{self.text}".encode()).hexdigest()


@dataclass(frozen=True)
class Chunk:
    """A piece of a document. `id` is the uuid5 of source and position, so a second run writes the same rows."""

    id: str
    source: str
    title: str
    position: int
    text: str
    document_checksum: str


def read_documents(folder: Path = KNOWLEDGE_BASE) -> Iterator[Document]:
    """The Markdown documents of `folder`, by name.

    :raises ValueError: a file that is not UTF-8 text, or is empty; the message names it. Or there is no file at
        all: a folder that was not deployed must not empty the index.
    """
    paths = sorted(folder.glob("*.md"))
    if not paths:
        raise ValueError(f"There are no Markdown files in {folder}.")
    yield from map(_read, paths)


def read_document(name: str) -> Document:
    """The document of this file name.

    :raises AirflowFailException: there is none; the message lists those that there are.
    """
    paths = {path.name: path for path in KNOWLEDGE_BASE.glob("*.md")}
    if name not in paths:
        raise AirflowFailException(f"There is no document {name!r}. There are: {', '.join(sorted(paths))}.")
    return _read(paths[name])


def _read(path: Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text: {error}") from error
    if not text:
        raise ValueError(f"{path.name} is empty.")
    return Document(source=path.name, title=text.splitlines()[0].lstrip("# "), text=text)


def split_document(document: Document) -> list[Chunk]:
    """Cut a document along its Markdown structure into overlapping chunks of at most CHUNK_CHARACTERS."""
    from semantic_text_splitter import MarkdownSplitter

    pieces = MarkdownSplitter(CHUNK_CHARACTERS, overlap=CHUNK_OVERLAP).chunks(document.text)
    return [
        Chunk(
            id=str(uuid5(NAMESPACE_URL, f"{document.source}#{position}")),
            source=document.source,
            title=document.title,
            position=position,
            text=text,
            document_checksum=document.checksum,
        )
        for position, text in enumerate(pieces)
    ]
