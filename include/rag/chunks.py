"""Cut documents into chunks, each with the path of headings above it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import NAMESPACE_URL, uuid5

from include.rag import bounded
from include.rag.documents import CHUNK_CHARACTERS, CHUNK_OVERLAP, Document, text_checksum
from include.rag.titles import LONGEST_TITLE, Heading


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


def split_document(document: Document) -> list[Chunk]:
    """Cut a document along its structure into overlapping chunks of at most CHUNK_CHARACTERS, headings not counted.

    :raises UnreadableDocument: this takes too long.
    """
    arguments = (document.text, document.format, CHUNK_CHARACTERS, CHUNK_OVERLAP)
    pieces, found = bounded.call(document.source, "include.rag.formats.cut", *arguments)
    starts, paths = [heading.start for heading in found], _heading_paths(document.title, found)
    chunks = []
    for position, (start, text) in enumerate(pieces):
        # With its overlap, a chunk begins in the section before its own: its middle decides where it belongs.
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
                checksum=text_checksum(text),
                document_checksum=document.checksum,
                document_chunks=len(pieces),
            )
        )
    return chunks


def _heading_paths(title: str, found: Sequence[Heading]) -> list[str]:
    """Return for each heading the path of headings down to it.

    It begins with the document's title (from front matter, for example) if no heading of level 1 is above.
    """
    above = [] if title in [heading.text for heading in found] else [Heading(0, 0, title)]
    paths = []
    for heading in found:
        least = 1 if heading.level == 1 else 0
        above = [other for other in above if least <= other.level < heading.level] + [heading]
        paths.append(" > ".join(other.text for other in above if other.text)[: 2 * LONGEST_TITLE])
    return paths
