"""Find the title of a document: in its front matter, its headings, its own properties or its first line."""

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
LONGEST_LINE = 1000  # a title is looked for in this much of a line

_FRONT_MATTER = re.compile(
    r"---[ \t]*\n(?P<yaml>.{0,50000}?)^(?:---|\.\.\.)[ \t]*$|\+\+\+[ \t]*\n(?P<toml>.{0,50000}?)^\+\+\+[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
# A line of YAML or TOML: a key, an item of a list, a table, a comment, a closing bracket, indented, or empty.
_KEYS = re.compile(r"""["'\w][^:=\n]{0,200}(:(\s|$)|=)|[-#\[\]{}]|[ \t]|$""")
# What programs write instead of a title: their own name, that there is none, or the name of the file.
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
# HTML in a line of Markdown, but not in code; and the anchor that some generators put at the end of a heading.
_TAGS = re.compile(
    r"(`[^`]*`)|</?(?:a|abbr|b|br|center|code|div|em|font|h[1-6]|i|img|kbd|p|small|span|strong|sub|sup|u)\b[^<>]*>"
    r"|\s*\{#[^{}]*\}\s*$"
)


class Heading(NamedTuple):
    """A heading of a Markdown text: the character at which it starts, its level, and its text."""

    start: int
    level: int
    text: str


def split_front_matter(text: str) -> tuple[str, str]:
    """Split a text into the title in its front matter (YAML or TOML), empty if it has none, and the rest.

    What only looks like front matter, such as text between two rules, stays in the text.
    """
    found = _FRONT_MATTER.match(text)
    block = (found["yaml"] or found["toml"] or "") if found else ""
    if not found or not block.strip() or not all(_KEYS.match(line) for line in block.split("\n")):
        return "", text
    try:
        # BaseLoader keeps all values strings, such as the titles "2026" and "On".
        fields = yaml.load(block, yaml.BaseLoader) if found["yaml"] else tomllib.loads(block)  # noqa: S506
    except (yaml.YAMLError, tomllib.TOMLDecodeError, RecursionError):
        line = re.search(r"^[\"']?title[\"']?[ \t]*[:=](.+)$", block, re.MULTILINE)
        fields = {"title": line[1].strip(" \t\"'")} if line else {}
    if not isinstance(fields, dict):
        return "", text
    title = fields.get("title") or fields.get("Title")
    return shown(title) if isinstance(title, str) else "", text[found.end() :].strip()


def own_title(title: str | None) -> str:
    """Return the title in a document's properties; empty if it is one that programs write."""
    title = shown(title or "")
    return "" if _NO_TITLE.fullmatch(title) else title


def headings(text: str) -> list[Heading]:
    """Return the headings of a Markdown text, in their order."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return [
        Heading(starts[token.map[0]], int(token.tag[1:]), shown(inline.content))
        for token, inline in pairwise(_block_parser().parse(text))
        if token.type == "heading_open" and token.map
    ]


def title_of(text: str, found: Iterable[Heading] = ()) -> str:
    """Return the title of a text: its first heading of level 1, else its first heading, or its first line.

    :param found: the text's headings.
    """
    named = [heading for heading in found if heading.text]
    top = next((heading.text for heading in named if heading.level == 1), "")
    return top or (named[0].text if named else _first_line(text))


def _first_line(text: str) -> str:
    lines = (shown(line.lstrip("#>*-+ \t")) for line in text.split("\n"))
    return next((line for line in lines if line), text.split("\n", 1)[0].strip()[:LONGEST_TITLE])


def shown(line: str) -> str:
    """Return the beginning of a line of Markdown without pictures, addresses of links, tags and anchors.

    :return: the text; empty if no words are left.
    """
    line = re.sub(r"!\[[^\[\]]*\]\([^()]*\)", "", line[:LONGEST_LINE])
    line = re.sub(r"\[([^\[\]]*)\]\([^()]*\)", r"\1", line)
    line = _TAGS.sub(lambda found: found[1] or "", line)
    return " ".join(line.split())[:LONGEST_TITLE] if re.search(r"[^\W_]", line) else ""


@cache
def _block_parser() -> MarkdownIt:
    """Make a parser of Markdown's blocks only. Cached, as making it takes longer than parsing most documents."""
    return MarkdownIt("commonmark").disable(["inline", "text_join"])
