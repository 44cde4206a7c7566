"""What a document is called, by its front matter, its headings, its own properties or its first line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import yaml
from markdown_it import MarkdownIt

LONGEST_TITLE = 200
LONGEST_LINE = 1000  # of which a title is looked for in a line's beginning

_FRONT_MATTER = re.compile(
    r"---[ \t]*\n(?P<yaml>.{0,50000}?)^(?:---|\.\.\.)[ \t]*$|\+\+\+[ \t]*\n(?P<toml>.{0,50000}?)^\+\+\+[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
# A line of YAML or TOML that begins at the margin: a key, an item of a list, a table, a comment, a closing bracket.
_KEYS = re.compile(r"""["'\w][^:=\n]{0,200}(:(\s|$)|=)|[-#\[\]{}]|[ \t]|$""")
# What programs write where a title belongs: their own name, that there is none, or the name of the file.
_NO_TITLE = re.compile(
    r"microsoft\s(office\s)?(word|excel|powerpoint|publisher|visio)\b.*"
    r"|(untitled|unnamed|unbenannt|no title|title|titel|binder|document|dokument|presentation|präsentation|slide"
    r"|powerpoint|book|mappe|workbook|sheet|tabelle|print|layout)([\s_-]*(document|dokument|presentation|präsentation|slide))?"
    r"[\s_-]*\d*"
    r"|(file:|[a-z]:[\\/]).*"
    r"|.*\.(pdf|docx?|docm|dotx?|rtf|od[tsp]|pptx?|ppsx?|xlsx?|xls[bm]|csv|tex|dvi|ps|eps|ai|indd|qxd|pmd|fm|wpd|txt|md"
    r"|x?html?|pages|key|numbers|vsdx?|pub|jpe?g|png|tiff?)",
    re.IGNORECASE,
)
# HTML in a line of Markdown, but not in code; and the name that some generators take from a heading's end.
_TAGS = re.compile(
    r"(`[^`]*`)|</?(?:a|abbr|b|br|center|code|div|em|font|h[1-6]|i|img|kbd|p|small|span|strong|sub|sup|u)\b[^<>]*>"
    r"|\s*\{#[^{}]*\}\s*$"
)


class Heading(NamedTuple):
    """A heading of a Markdown text: at which character it starts, its level, and its text."""

    start: int
    level: int
    text: str


def split_front_matter(text: str) -> tuple[str, str]:
    """Split a text into the title of its front matter (YAML or TOML), empty if it has none, and the rest.

    What only looks like front matter, such as a text between two rules, is text.
    """
    found = _FRONT_MATTER.match(text)
    block = (found["yaml"] or found["toml"] or "") if found else ""
    if not found or not block.strip() or not all(_KEYS.match(line) for line in block.split("\n")):
        return "", text
    try:
        # Its loader of plain strings: a title "2026" or "On" is what it says.
        fields = yaml.load(block, yaml.BaseLoader) if found["yaml"] else tomllib.loads(block)  # noqa: S506
    except (yaml.YAMLError, tomllib.TOMLDecodeError, RecursionError):
        line = re.search(r"^[\"']?title[\"']?[ \t]*[:=](.+)$", block, re.MULTILINE)
        fields = {"title": line[1].strip(" \t\"'")} if line else {}
    if not isinstance(fields, dict):
        return "", text
    title = fields.get("title") or fields.get("Title")
    return shown(title) if isinstance(title, str) else "", text[found.end() :].strip()


def own_title(title: str | None) -> str:
    """Return a title as a document's properties have it; empty if it is one that programs write."""
    title = shown(title or "")
    return "" if _NO_TITLE.fullmatch(title) else title


def headings(text: str) -> list[Heading]:
    """Find the headings of a Markdown text, in their order."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return [
        Heading(starts[token.map[0]], int(token.tag[1:]), shown(inline.content))
        for token, inline in pairwise(_block_parser().parse(text))
        if token.type == "heading_open" and token.map
    ]


def title_of(text: str, found: Iterable[Heading] = (), given: str = "") -> str:
    """Return the title of a text: its first heading of level 1; else what is given; its first heading; its first line.

    :param found: the text's headings.
    """
    named = [heading for heading in found if heading.text]
    top = next((heading.text for heading in named if heading.level == 1), "")
    return top or given or (named[0].text if named else _first_line(text))


def _first_line(text: str) -> str:
    lines = (shown(line.lstrip("#>*-+ \t")) for line in text.split("\n"))
    return next((line for line in lines if line), text.split("\n", 1)[0].strip()[:LONGEST_TITLE])


def shown(line: str) -> str:
    """Return the beginning of a line of Markdown without pictures, addresses of links, tags and anchors.

    :return: empty if no words are left.
    """
    line = re.sub(r"!\[[^\[\]]*\]\([^()]*\)", "", line[:LONGEST_LINE])
    line = re.sub(r"\[([^\[\]]*)\]\([^()]*\)", r"\1", line)
    line = _TAGS.sub(lambda found: found[1] or "", line)
    return " ".join(line.split())[:LONGEST_TITLE] if re.search(r"[^\W_]", line) else ""


@cache
def _block_parser() -> MarkdownIt:
    """Make a parser of Markdown's blocks, all that is needed. Making it takes longer than most documents do."""
    return MarkdownIt("commonmark").disable(["inline", "text_join"])
