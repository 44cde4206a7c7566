"""The knowledge base: documents, read and cut into chunks."""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from airflow.providers.common.compat.sdk import AirflowFailException

from include.common.text import whole_characters
from include.rag import bounded
from include.rag.bounded import UnreadableDocument
from include.rag.formats import FORMATS, read_text
from include.rag.titles import LONGEST_TITLE, Heading

CHUNK_CHARACTERS = 800  # about 200 tokens: one or two sections of a help page
CHUNK_OVERLAP = 100
READING = 2  # raise it when files are read or cut differently: all are read again, and new texts are embedded

# Why files are left out.
HIDDEN = "hidden"
LINK = "symbolic links (copy the files instead)"
SPECIAL = "neither files nor folders"
NOT_UTF_8 = "names that are not UTF-8 (rename them)"
OTHER_TYPE = "files of types that are not read"
ODD = (LINK, SPECIAL, NOT_UTF_8)
MOST_NAMED = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One file: its name below the knowledge base, its title, its whole text, and its format.

    `checksum` changes with the bytes of the file, and with how documents are read and cut. `notes` says what of the
    file could not be read, such as single pages of a PDF.
    """

    source: str
    title: str
    text: str
    checksum: str
    format: str
    notes: tuple[str, ...] = ()


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
    """List the documents in the knowledge base and below: the files of a type that is read.

    Left out, and named in the log, are hidden files, links (they may lead anywhere on the worker), devices and pipes,
    and files whose name is not UTF-8, which no database takes. Files of other types are counted.

    :raises ValueError: there are no documents, as in a folder that was not deployed.
    """
    folder = knowledge_base()
    names: list[str] = []
    left_out: dict[str, list[str]] = {}
    for path in _entries(folder):
        name = path.relative_to(folder).as_posix()
        if reason := _reason_to_leave_out(path, name):
            left_out.setdefault(reason, []).append(name if name.isprintable() else ascii(os.fsencode(name)))
        else:
            names.append(name)
    for reason, files in sorted(left_out.items()):
        shown = "" if reason == OTHER_TYPE else f": {', '.join(sorted(files)[:MOST_NAMED])}"
        log.log(logging.WARNING if reason in ODD else logging.INFO, "Left out, %s: %d%s", reason, len(files), shown)
    if not names:
        raise ValueError(
            f"There are no documents in {folder}. Deploy them with the project, or set GENAI_KNOWLEDGE_BASE to their "
            "folder on every worker. The index stays as it is."
        )
    return sorted(names)


def _entries(folder: Path) -> Iterator[Path]:
    """Yield all in a folder and below that is not a folder; links and hidden folders are not entered."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _entries(path)
        else:
            yield path


def _reason_to_leave_out(path: Path, name: str) -> str:
    if path.name.startswith("."):
        return HIDDEN
    if path.is_symlink():
        return LINK
    if not path.is_file():
        return SPECIAL
    if path.suffix.lower() not in FORMATS:
        return OTHER_TYPE
    return "" if name == whole_characters(name) else NOT_UTF_8


def file_checksum(name: str) -> str:
    """Compute the `Document.checksum` of a file without parsing it; another one if it cannot be read."""
    try:
        with _path(name).open("rb") as file:
            return _document_checksum(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return _document_checksum("unreadable")  # `read_document` says why


def read_document(name: str) -> Document:
    """Read the document of this name.

    :raises AirflowFailException: there is none; the message lists those that there are.
    :raises include.rag.formats.UnreadableDocument: it cannot be used.
    """
    try:
        path = _path(name)
    except OSError:
        raise AirflowFailException(
            f"There is no document {name!r}. There are: {', '.join(document_names())}."
        ) from None
    file = read_text(path, name)
    return Document(name, file.title, file.text, _document_checksum(file.sha256), file.format, file.notes)


def _path(name: str) -> Path:
    """Return the path of a document.

    :raises OSError: there is none, or a link leads to it.
    """
    folder = knowledge_base().resolve()
    path = folder / name
    if path.resolve() != path or folder not in path.parents or not path.is_file():
        raise FileNotFoundError(name)
    return path


def split_document(document: Document) -> list[Chunk]:
    """Cut a document along its structure into overlapping chunks of at most CHUNK_CHARACTERS, headings not counted.

    :raises UnreadableDocument: it takes too long.
    """
    try:
        pieces, found = bounded.call(
            "include.rag.formats.cut", document.text, document.format, CHUNK_CHARACTERS, CHUNK_OVERLAP
        )
    except UnreadableDocument as error:
        raise UnreadableDocument(f"{document.source} {error}") from error
    starts, paths = [heading.start for heading in found], _heading_paths(document.title, found)
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


def _heading_paths(title: str, found: Sequence[Heading]) -> list[str]:
    """Return for each heading the path of headings down to it.

    It begins with the title, as that of front matter, if no heading of level 1 stands above.
    """
    above = [] if title in [heading.text for heading in found] else [Heading(0, 0, title)]
    paths = []
    for heading in found:
        least = 1 if heading.level == 1 else 0
        above = [other for other in above if least <= other.level < heading.level] + [heading]
        paths.append(" > ".join(other.text for other in above if other.text)[: 2 * LONGEST_TITLE])
    return paths


def _document_checksum(sha256: str) -> str:
    return _checksum(str(READING), str(CHUNK_CHARACTERS), str(CHUNK_OVERLAP), sha256)


def _checksum(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
