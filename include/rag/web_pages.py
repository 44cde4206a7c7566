"""Read a web page as Markdown: what a browser shows, without what a site repeats on every page."""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from html import escape
from typing import Any

import webencodings
from html_to_markdown import ConversionOptions, PreprocessingOptions, convert
from selectolax.lexbor import LexborHTMLParser

from include.rag.bounded import UnreadableDocument
from include.rag.formats import Parsed
from include.rag.titles import headings, shown, split_front_matter, title_of

DEEPEST = 100  # levels of elements; what is nested deeper becomes plain text

NEVER_SHOWN = ["script", "style", "noscript", "template", "svg", "iframe", "object"]
CONTENT = ["main", "article", "[role=main]"]
AROUND_CONTENT = ["header", "footer", "aside", "form"]

_DECLARED = re.compile(
    rb"<meta\b[^>]{0,500}?\bcharset\s{0,9}=\s{0,9}[\"']?\s{0,9}([\w.:-]+)"
    rb"|^\s{0,99}<\?xml\b[^>]{0,200}?\bencoding\s{0,9}=\s{0,9}[\"']([\w.:-]+)",
    re.IGNORECASE,
)
# The text of a link to copy a heading's address from: a pilcrow, a hash, a chain, an icon of a font, or nothing.
_SIGN = re.compile(r"[\s¶§#∞⚓↩↑⇧\U0001f517\ufe0e\ufe0f\u200b-\u200d\u2060\ufeff\ue000-\uf8ff]*")
_LINK_TO_HEADING = re.compile(r"(?i)(section titled|permalink|permanent link|direct link|link to) .*")
_SKIP = re.compile(r"(?i)(skip|jump) to .*")

# What the converter escapes outside code; this is undone, as nobody renders the text. "|" in a table stays escaped, and
# "#" at the beginning of a line.
_ESCAPED = re.compile(r"((`{3,}).*?\2|`[^`\n]+`|^\\#)|\\([!-/:-@\[-`{}~])", re.DOTALL | re.MULTILINE)

_MARKDOWN = ConversionOptions(
    skip_images=True,
    strip_tags=["a"],
    extract_metadata=False,
    hidden_content="all",  # such as the panels of tabs
    compact_tables=True,
    bullets="-",
    expand_abbreviations=False,
    highlight_style="none",
    autolinks=False,
    preprocessing=PreprocessingOptions(enabled=False, remove_navigation=False, remove_forms=False),
)


def read_page(data: bytes) -> Parsed:
    """Read a page; the text always gets a heading of level 1. Site generators may have left front matter in it."""
    title, text = split_front_matter(decode(data))
    return page_as_markdown(text, title)


def decode(data: bytes) -> str:
    """Decode a page by the rules of the WHATWG: a byte order mark first, then the declared encoding.

    :raises UnreadableDocument: it declares no encoding, and is not UTF-8. A browser would guess.
    """
    head = re.sub(rb"<!--.*?-->", b"", data[:4096], flags=re.DOTALL)
    labels = [(found[1] or found[2]).decode("ascii", "replace") for found in _DECLARED.finditer(head)]
    declared = next((encoding for label in labels if (encoding := webencodings.lookup(label))), None)
    if declared is None and not data.startswith((BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE)):
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UnreadableDocument(
                f"is wrongly encoded (expected is UTF-8, as it declares no encoding): {error}"
            ) from None
    if declared is None or declared.name.startswith("utf-16"):  # it was read as ASCII
        declared = webencodings.UTF8
    elif declared.name == "x-user-defined":
        declared = webencodings.lookup("windows-1252")
    return str(webencodings.decode(data, declared, "replace")[0])


def page_as_markdown(html: str, title: str = "") -> Parsed:
    """Convert a page.

    :param title: from elsewhere; by default the first heading of level 1, in the page's main part if it has one.
    """
    page = LexborHTMLParser(html)
    if page.body is None:
        return Parsed("", "")
    _flatten(page.body)
    page.strip_tags(NEVER_SHOWN)
    for link in reversed(page.css("a[href*='#']")):  # inner ones first: dropping a link also frees what is in it
        if _is_no_text(link, page):
            link.decompose()
    for line_break in page.css("h1 br"):
        line_break.replace_with(" ")
    given = page.css_first("title")
    content = [part for part in page.css(", ".join(CONTENT)) if shown(_text(part))]
    heads = [head for part in [*content, page.body] for head in part.css("h1") if shown(_text(head))]
    _drop_what_is_around(page, bool(content), heads[0] if heads else None)
    text = _ESCAPED.sub(
        lambda found: found[1] or found[3], convert(page.body.html or "", _MARKDOWN).content or ""
    ).strip()
    title = title or (shown(_text(heads[0])) if heads else "") or (shown(_text(given)) if given else "")
    title = title or title_of(text, headings(text))
    return Parsed(title, text if heads or not text else f"# {title}\n\n{text}")


def _flatten(body: Any) -> None:
    """Turn what is nested too deeply for recursive code into plain text."""
    waiting = [(body, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth == DEEPEST:
            node.inner_html = escape(node.text(separator="\n"))
        else:
            waiting += [(child, depth + 1) for child in node.iter()]


def _is_no_text(link: Any, page: Any) -> bool:
    """Return whether a link is a sign to copy a heading's address from, or skips to the main part."""
    text = _text(link).strip()
    if _SIGN.fullmatch(text) or _LINK_TO_HEADING.fullmatch(text):
        return True
    if link.css_matches(", ".join(f"{part} a" for part in CONTENT)):
        return False
    target = (link.attributes.get("href") or "").partition("#")[2]
    if _SKIP.fullmatch(text) or "skip" in (link.attributes.get("class") or ""):
        return True
    if not re.fullmatch(r"[\w-]+", target):
        return False
    found = page.css_first(f"[id='{target}']")
    return found is not None and found.css_matches(", ".join(CONTENT))


def _drop_what_is_around(page: Any, has_content: bool, heading: Any) -> None:
    """Drop navigation, and what surrounds the main part, unless the page's heading or main part is in it.

    If a page marks no main part, asides and forms are kept, as they may hold anything.
    """
    content = ", ".join(CONTENT)
    around = AROUND_CONTENT if has_content else ["header", "footer"]
    inside = {part.mem_id for part in page.css(", ".join(f"{part} {name}" for part in CONTENT for name in around))}
    for part in reversed(page.css(", ".join(["nav", *around]))):
        if part.mem_id in inside or (has_content and part.css_first(content) is not None):
            continue
        if heading is None or all(head.mem_id != heading.mem_id for head in part.css("h1")):
            part.decompose()


def _text(node: Any) -> str:
    return str(node.text())
