"""The knowledge base: documents, in a folder or a bucket, read and cut into chunks."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from include.common.text import clean_text
from include.rag.bounded import UnreadableDocument
from include.rag.formats import FORMATS, read_text

try:
    from include.rag.bucket import Bucket
except ImportError:  # a copied pattern may lack it
    Bucket = None  # type: ignore[assignment,misc]

CHUNK_CHARACTERS = 800  # about 200 tokens: one or two sections of a help page
CHUNK_OVERLAP = 100
MAX_BYTES = 20_000_000  # of a file: more than any help page, and little enough for a worker's memory
READING = 2  # raise it when files are read or cut differently: all are read again, and new texts are embedded

# Why files are left out.
HIDDEN = "hidden"
LINK = "symbolic links (copy the files instead)"
SPECIAL = "neither files nor folders"
ODD_NAME = "names that are not UTF-8, or have // (rename them)"
OTHER_TYPE = "files of types that are not read"
ODD = (LINK, SPECIAL, ODD_NAME)
MOST_NAMED = 20

UNREADABLE = "unreadable"  # the version of a file that cannot be read

log = logging.getLogger(__name__)


class NotAsListed(AirflowException):
    """A document is missing on this worker, or is not the version that was listed."""


@dataclass(frozen=True)
class Document:
    """One file: its name below the knowledge base, its title, its whole text, and its format.

    `checksum` changes with the version of the file, and with how documents are read and cut. `notes` says what of the
    file could not be read, such as single pages of a PDF.
    """

    source: str
    title: str
    text: str
    checksum: str
    format: str
    notes: tuple[str, ...] = ()


def location() -> str:
    """Return the name of the folder or bucket, for messages."""
    return str(_bucket() or knowledge_base())


def knowledge_base() -> Path:
    """Return the folder of the documents: GENAI_KNOWLEDGE_BASE, which every worker must see, or that of the project.

    :raises ValueError: the documents are in a bucket.
    """
    if bucket := _bucket():
        raise ValueError(f"The knowledge base is {bucket}, which is not a folder of this worker.")
    return Path(os.environ.get("GENAI_KNOWLEDGE_BASE") or Path(__file__).parents[1] / "knowledge_base")


def _bucket() -> Bucket | None:
    url = os.environ.get("GENAI_KNOWLEDGE_BASE", "")
    if "://" not in url:
        return None
    if Bucket is None:
        raise AirflowFailException("GENAI_KNOWLEDGE_BASE is a bucket, for which include/rag/bucket.py is missing.")
    return Bucket(url)


def listed_documents() -> dict[str, str]:
    """List the documents of the knowledge base, sorted by name, each with its `Document.checksum`; parse none.

    Documents are the files of a supported type. Left out, and named in the log, are hidden files, links (they may lead
    anywhere on the worker), devices and pipes, and files whose name is not UTF-8, which no database accepts. Files of
    other types are counted.

    :raises ValueError: there are no documents, as in a folder that was not deployed.
    """
    if bucket := _bucket():
        versions = bucket.versions()
        names = _documents(str(bucket), ((name, _reason_in_name(name)) for name in versions))
        return {name: _document_checksum(versions[name]) for name in names}
    folder = knowledge_base()
    entries = ((path, path.relative_to(folder).as_posix()) for path in _entries(folder))
    names = _documents(str(folder), ((name, _reason_to_leave_out(path, name)) for path, name in entries))
    return {name: file_checksum(name) for name in names}


def _documents(where: str, entries: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names that have no reason to be left out, sorted, and log the others."""
    names: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name, reason in entries:
        if reason:
            left_out.setdefault(reason, []).append(name if name.isprintable() else ascii(os.fsencode(name)))
        else:
            names.append(name)
    for reason, files in sorted(left_out.items()):
        shown = "" if reason == OTHER_TYPE else f": {', '.join(sorted(files)[:MOST_NAMED])}"
        log.log(logging.WARNING if reason in ODD else logging.INFO, "Left out, %s: %d%s", reason, len(files), shown)
    if not names:
        raise ValueError(
            f"There are no documents in {where}. Deploy them with the project, or set GENAI_KNOWLEDGE_BASE to their "
            "bucket, or to their folder on every worker. The index stays as it is."
        )
    return sorted(names)


def _entries(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder that is not a folder itself; do not enter links and hidden folders."""
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
    return _reason_in_name(name) if path.is_file() else SPECIAL


def _reason_in_name(name: str) -> str:
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return HIDDEN
    if PurePosixPath(name).suffix.lower() not in FORMATS:
        return OTHER_TYPE
    return "" if name == clean_text(name) and "" not in parts else ODD_NAME


def file_checksum(name: str) -> str:
    """Compute the `Document.checksum` of a file without parsing it; a fixed one if it cannot be read."""
    try:
        with _path(name).open("rb") as file:
            return _document_checksum(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return _document_checksum(UNREADABLE)  # `read_document` says why


def read_document(name: str, checksum: str = "") -> Document:
    """Read the document of this name.

    :param checksum: that of the listed version, if no other version will do.
    :raises NotAsListed: the document has another checksum, or is missing.
    :raises AirflowFailException: there is no such document; the message lists those that exist.
    :raises AirflowException: its bucket does not answer.
    :raises UnreadableDocument: it cannot be used.
    """
    bucket, reason = _bucket(), ""
    try:
        version, data = bucket.read(name, MAX_BYTES + 1) if bucket else _read_file(name, MAX_BYTES + 1)
    except FileNotFoundError:
        if checksum:
            raise NotAsListed(f"{name} is missing on this worker.") from None
        raise AirflowFailException(
            f"There is no document {name!r}. There are: {', '.join(listed_documents())}."
        ) from None
    except OSError as error:
        version, data, reason = UNREADABLE, b"", f"cannot be read: {error.strerror or error}"
    if len(data) > MAX_BYTES:
        raise UnreadableDocument(f"{name} is larger than {MAX_BYTES:,} bytes.")
    found = _document_checksum(version)
    if checksum not in ("", found):
        raise NotAsListed(f"{name} is not the version that was listed.")
    if reason:
        raise UnreadableDocument(f"{name} {reason}")
    format_name, parsed = read_text(data, name)
    return Document(name, parsed.title, parsed.text, found, format_name, tuple(parsed.notes))


def _read_file(name: str, most: int) -> tuple[str, bytes]:
    """Return the version and the content of a file, at most `most` bytes, from one read, so that they match."""
    with _path(name).open("rb") as file:
        data = file.read(most)
    return hashlib.sha256(data).hexdigest(), data


def _path(name: str) -> Path:
    """Return the path of a document.

    :raises FileNotFoundError: there is none, or it is behind a link.
    """
    folder = knowledge_base().resolve()
    path = folder / name
    if path.resolve() != path or folder not in path.parents or not path.is_file():
        raise FileNotFoundError(name)
    return path


def _document_checksum(version: str) -> str:
    return text_checksum(str(READING), str(CHUNK_CHARACTERS), str(CHUNK_OVERLAP), version)


def text_checksum(*parts: str) -> str:
    """Compute the checksum of one or several texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
