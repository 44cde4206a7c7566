"""Small files of the kinds that people really have: what each is called, and what of it can be found.

The kinds were met in documentation sites, vendors' PDFs and office files.
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pytest

from include.rag.bounded import UnreadableDocument
from include.rag.chunks import split_document
from include.rag.documents import read_document
from tests.document_files import docx, pdf, pptx, xlsx

pytestmark = pytest.mark.one_stack


class File(NamedTuple):
    """A file, its title, what stands in the text of its chunks, and what does not.

    A text that begins with "> " is that of a chunk's headings.
    """

    content: str | bytes
    title: str
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


def front(fields: str, text: str = "Press the button.", fence: str = "---", end: str = "") -> str:
    return f"{fence}\n{fields}\n{end or fence}\n{text}"


def page(body: str, head: str = "") -> str:
    return f"<!DOCTYPE html><html><head>{head}</head><body>{body}</body></html>"


LONG = "The button stands for itself. " * 40
T = "<title>Resetting - Help</title>"
SKIP = '<a href="#m">{}</a><main id="m"><h1>Resetting</h1><p>Press.</p></main>'
ROWS = [["Model", "Supply"], ["K2", "12 V"], ["K3", "24 V"]]

MARKDOWN = {
    "heading": File("# Resetting\n\nPress.", "Resetting", ("Press.",)),
    "setext": File("Resetting\n=========\n\nPress.", "Resetting", ("> Resetting",)),
    "badges": File("[![CI](https://a/b.svg)](https://a)\n![x](y.png)\n\n# Resetting\n\nPress.", "Resetting"),
    "badges-only": File("[![CI](https://a/b.svg)](https://a)\n\nPress **it**.", "Press **it**."),
    "picture-heading": File("# ![Logo](logo.png)\n\n# Resetting\n\nPress.", "Resetting"),
    "comment-first": File("<!-- SPDX: MIT -->\n\n# Resetting\n\nPress.", "Resetting"),
    "link-heading": File("# [Resetting](reset.md) a tracker {#reset}\n\nPress.", "Resetting a tracker"),
    "anchor-heading": File('# <a name="top"></a>Resetting\n\nPress.', "Resetting"),
    "code-heading": File("# The `<a>` element of List<String>\n\nPress.", "The `<a>` element of List<String>"),
    "second-level": File("## Resetting\n\nPress.", "Resetting"),
    "intro-first": File("Read this.\n\n## Limits\n\nTen.\n\n# Resetting\n\nPress.", "Resetting", ("Read this.",)),
    "no-heading": File("\n\nPress the button.\nThen wait.", "Press the button."),
    "list-first": File("- Press the button.\n- Wait.", "Press the button."),
    "hash-in-code": File("```sh\n# not a title\n```\n\n# Resetting\n\nPress.", "Resetting"),
    "rule-first": File("---\n\nPress the button.\n\n---\n\nWait.", "Press the button.", ("Wait.",)),
    "rule-and-colon": File("---\nNote: read this\n\nand more of it.\n\n---\nWait.", "Note: read this", ("and more",)),
    "rule-later": File("# Resetting\n\n---\ntitle: no front matter\n---\n", "Resetting", ("no front matter",)),
    "no-end": File("---\ntitle: Resetting\n\nPress.", "title: Resetting", ("Press.",)),
    "yaml": File(front('title: "Resetting"\nsidebar_position: 3'), "Resetting", lacks=("sidebar", "---", "title:")),
    "yaml-crlf": File(front("title: Resetting\nid: r").replace("\n", "\r\n"), "Resetting", lacks=("id: r",)),
    "yaml-mark": File("\ufeff" + front("title: Resetting"), "Resetting", lacks=("title:",)),
    "yaml-dots": File(front("title: Resetting", end="..."), "Resetting", ("Press",), lacks=("...",)),
    "yaml-folded": File(front("title: >-\n  Resetting\n  a tracker"), "Resetting a tracker", lacks=("tracker\n  a",)),
    "yaml-list": File(front("tags:\n- a\n- b\ntitle: Resetting"), "Resetting", lacks=("tags",)),
    "yaml-number": File(front("title: 2026"), "2026", ("Press",)),
    "yaml-word": File(front("title: On"), "On", ("Press",)),
    "yaml-comment": File(front("# generated\ntitle: Resetting"), "Resetting", lacks=("generated",)),
    "yaml-invalid": File(front("title: Webhooks: retries\nid: w"), "Webhooks: retries", lacks=("id: w",)),
    "yaml-template": File(front("title: {{ product }} reset\nid: w"), "{{ product }} reset", lacks=("id: w",)),
    "yaml-no-title": File(front("id: r", "# Resetting\n\nPress."), "Resetting", lacks=("id: r",)),
    "yaml-empty-title": File(front("title:\nid: r", "# Resetting\n\nPress."), "Resetting", lacks=("id: r",)),
    "yaml-and-heading": File(front("title: Webhooks", "# Web hooks\n\nPress."), "Webhooks", ("> Web hooks",)),
    "yaml-sections": File(front("title: Hooks", "Intro.\n\n## Retries\n\n" + LONG), "Hooks", ("> Hooks > Retries",)),
    "toml": File(front('title = "Resetting"\ndraft = false', fence="+++"), "Resetting", lacks=("draft", "+++")),
    "toml-table": File(front('title = "Resetting"\n[params]\na = 1', fence="+++"), "Resetting", lacks=("params",)),
    "toml-invalid": File(front("title = Resetting\na = b", fence="+++"), "Resetting", lacks=("a = b",)),
    "chinese": File("# 重置密码\n\n按下按钮。", "重置密码", ("按下按钮。",)),
    "thai": File("# วิธีรีเซ็ต\n\nกดปุ่ม", "วิธีรีเซ็ต", ("กดปุ่ม",)),
    "old-mac-lines": File("# Resetting\r\rPress.", "Resetting", ("Press.",)),
    "separators": File("# One\u2028two\n\nPress\u0085it.", "One two", ("Press\u0085it.",)),
}
HTML = {
    "no-end-tags": File("<title>T</title><h1>List</h1><ul><li>One<li>Two</ul><p>After", "List", ("- One\n- Two\n",)),
    "table-without-end-tags": File(
        "<h1>T</h1><table><tr><th>Model<th>Supply<tr><td>K2<td>12 V<tr><td>K3<td>24 V</table>",
        "T",
        ("| Model | Supply |", "| K2 | 12 V |", "| K3 | 24 V |"),
    ),
    "definitions": File("<h1>T</h1><dl><dt>K2<dd>12 V<dt>K3<dd>24 V</dl>", "T", ("K2\n\n12 V\n\nK3\n\n24 V",)),
    "many-paragraphs": File("<h1>T</h1>" + "<p>word" * 400, "T", ("word\n\nword",)),
    "deep": File("<h1>T</h1>" + "<div>" * 2000 + "Deep." + "</div>" * 2000 + "<p>After.", "T", ("Deep.", "After.")),
    "deep-list": File("<h1>T</h1>" + "<ul><li>" * 1000 + "Deep.", "T", ("Deep.",)),
    "deep-inline": File("<h1>T</h1><p>" + "<b>" * 3000 + "Deep.", "T", ("Deep.",)),
    "deep-tables": File("<h1>T</h1>" + "<table><tr><td>" * 500 + "Deep.", "T", ("Deep.",)),
    "title-only": File(page("<p>Press.</p>", T), "Resetting - Help", ("> Resetting - Help", "Press.")),
    "empty-heading": File(page('<h1><img src="l.png"></h1><p>Press.</p>', T), "Resetting - Help"),
    "heading-wins": File(page("<h1>Resetting</h1><p>Press.</p>", T), "Resetting"),
    "second-level": File(
        page(f"<h2>Limits</h2><p>{LONG}</p>", T), "Resetting - Help", ("> Resetting - Help > Limits",)
    ),
    "no-title": File(page("<p>Press the button.</p>"), "Press the button."),
    "tag-in-heading": File(page("<h1>List&lt;String&gt;</h1><p>Press.</p>"), "List<String>"),
    "broken-heading": File(page("<h1>Resetting<br>a <em>tracker</em></h1><p>Press."), "Resetting a tracker"),
    "title-of-picture": File(page("<svg><title>Logo</title></svg><h1>Resetting</h1>"), "Resetting", lacks=("Logo",)),
    "site-heading": File(
        page("<header><h1>Kestrel</h1></header><main><h1>Resetting</h1><p>Press.</p></main>"),
        "Resetting",
        lacks=("Kestrel",),
    ),
    "jekyll": File(front("layout: page\ntitle: Resetting", "<p>Press.</p>"), "Resetting", lacks=("layout",)),
    "skip-link": File(page(SKIP.format("Skip to main content")), "Resetting", lacks=("Skip",)),
    "skip-link-german": File(page(SKIP.format("Zum Inhalt springen")), "Resetting", lacks=("Inhalt",)),
    "skip-link-class": File(page('<a class="skip-nav" href="#x">Zum Text</a><h1>R</h1>'), "R", lacks=("Zum Text",)),
    "skip-in-text": File(
        page('<main><h1>R</h1><p><a href="#x">Skip to step 3</a></p></main>'), "R", ("Skip to step 3",)
    ),
    "nested-furniture": File(
        page("<aside><nav>Home<form>Find<nav>All</nav></form></nav></aside>" * 3 + "<main><h1>R</h1>Press.</main>"),
        "R",
        ("Press.",),
        ("Home", "Find", "All"),
    ),
    "contents-stay": File(page('<a href="#l">Limits</a><h1>R</h1><h2 id="l">Limits</h2>'), "R", ("Limits\n\n# R",)),
    "navigation": File(page("<nav>Home</nav><h1>R</h1><p>Press.</p>"), "R", lacks=("Home",)),
    "navigation-without-end": File(page("<nav><ul><li>Home</ul><h1>R</h1><p>Press."), "R", ("Press.",)),
    "aside-in-main": File(page("<main><h1>R</h1><aside><p>Deletes all.</p></aside></main>"), "R", ("Deletes all.",)),
    "aside-in-role": File(page('<div role="main"><h1>R</h1><aside>Deletes all.</aside></div>'), "R", ("Deletes all.",)),
    "aside-beside-main": File(page("<aside>Links</aside><main><h1>R</h1>Press.</main>"), "R", lacks=("Links",)),
    "aside-without-main": File(page("<h1>R</h1><aside>Deletes all.</aside>"), "R", ("Deletes all.",)),
    "header-in-article": File(
        page("<header>Example Corp</header><article><header><h1>R</h1><p>For K2.</p></header><p>Press.</p></article>"),
        "R",
        ("For K2.", "Press."),
        ("Example",),
    ),
    "header-with-heading": File(page("<header><h1>R</h1><p>For K2.</p></header><p>Press."), "R", ("For K2.",)),
    "footer-in-article": File(page("<article><h1>R</h1><footer>Since 3.2</footer></article>"), "R", ("Since 3.2",)),
    "footer-of-page": File(page("<h1>R</h1><p>Press.</p><footer>Imprint</footer>"), "R", lacks=("Imprint",)),
    "form-around-all": File(page("<form><main><h1>R</h1><p>Press.</p></main></form>"), "R", ("Press.",)),
    "form-without-main": File(page("<form><h1>R</h1><p>Press.</p></form>"), "R", ("Press.",)),
    "form-in-main": File(page("<main><h1>R</h1><form><p>Step 1</p></form></main>"), "R", ("Step 1",)),
    "search-form": File(page("<form><label>Find</label></form><main><h1>R</h1></main>"), "R", lacks=("Find",)),
    "never-shown": File(
        page("<h1>R</h1><style>a{}</style><script>x()</script><template>t9</template>Press."),
        "R",
        ("Press.",),
        ("a{}", "x()", "t9"),
    ),
    "permalink": File(page('<h1>Limits<a class="headerlink" href="#l">¶</a></h1><p>Ten.'), "Limits", lacks=("¶",)),
    "permalink-hash": File(page('<h1>R</h1><h2>Limits <a href="#l">#</a></h2><p>Ten.'), "R", ("## Limits\n",)),
    "permalink-icon": File(page('<h1>Limits<a href="#l">\uf0c1</a></h1><p>Ten.'), "Limits", lacks=("\uf0c1",)),
    "permalink-blank": File(page('<h1>Limits<a href="/p#l">\u200b</a></h1><p>Ten.'), "Limits", lacks=("\u200b",)),
    "permalink-words": File(
        page('<h1>Limits</h1><a href="#l">Section titled “Limits”</a>T.'), "Limits", lacks=("titled",)
    ),
    "link-in-text": File(page('<h1>R</h1><p>See <a href="#l">C#</a> and <a href="#f">1</a>.'), "R", ("See C# and 1.",)),
    "no-backslashes": File(
        page("<h1>max_runs</h1><p>Set GIT_DIR_x; 2*3 is 6 [a] &lt;b&gt;."),
        "max_runs",
        ("Set GIT_DIR_x; 2*3 is 6 [a] <b>.",),
        ("\\",),
    ),
    "bar-in-cell": File(page("<h1>R</h1><table><tr><th>k<th>v<tr><td>a|b<td>c</table>"), "R", ("| a\\|b | c |",)),
    "code": File(
        page("<h1>R</h1><pre><code>def f():\n    return a_b</code></pre>"), "R", ("def f():\n    return a_b",)
    ),
    "tabs": File(page("<h1>R</h1><div hidden><p>On Linux</p></div>"), "R", ("On Linux",)),
}
HTML_ENCODINGS = {
    "latin-1-is-windows": File(b'<meta charset="iso-8859-1"><h1>T</h1>Don\x92t pay \x80 5', "T", ("Don’t pay € 5",)),
    "ascii-is-windows": File(b'<meta charset="us-ascii"><h1>T</h1>\x93now\x94', "T", ("“now”",)),
    "http-equiv": File(
        b'<meta http-equiv=Content-Type content="text/html; charset=windows-1251"><h1>' + "Сброс".encode("cp1251"),
        "Сброс",
    ),
    "gb2312-is-gbk": File('<meta charset="gb2312"><h1>重置</h1>镕'.encode("gbk"), "重置", ("镕",)),
    "shift-jis": File('<meta charset="shift_jis"><h1>初期化</h1>①'.encode("cp932"), "初期化", ("①",)),
    "euc-kr": File('<meta charset="euc-kr"><h1>초기화</h1>똠'.encode("cp949"), "초기화", ("똠",)),
    "thai": File('<meta charset="tis-620"><h1>รีเซ็ต</h1>'.encode("cp874"), "รีเซ็ต"),
    "utf-16-label": File(b'<meta charset="utf-16"><h1>Reset</h1><p>Press \xe2\x82\xac</p>', "Reset", ("Press €",)),
    "utf-16-mark": File("\ufeff<h1>Gebühren</h1>".encode("utf-16-le"), "Gebühren"),
    "utf-16-big-mark": File("\ufeff<h1>Gebühren</h1>".encode("utf-16-be"), "Gebühren"),
    "mark-wins": File("\ufeff<meta charset=latin1><h1>Gebühren</h1>".encode(), "Gebühren"),
    "unknown-label": File("<meta charset=no-such><h1>Gebühren</h1>".encode(), "Gebühren"),
    "nothing-declared": File("<h1>Gebühren</h1>".encode(), "Gebühren"),
    "in-a-comment": File("<!-- <meta charset=koi8-r> --><h1>Gebühren</h1>".encode(), "Gebühren"),
    "xml": File('<?xml version="1.0" encoding="iso-8859-1"?><html><h1>Gebühren</h1>'.encode("latin-1"), "Gebühren"),
    "one-bad-byte": File(b"<meta charset=utf-8><h1>Reset</h1><p>Press \xff it", "Reset", ("Press \ufffd it",)),
}
PDF = {
    "title": File(pdf("Open it.", title="The manual"), "The manual", ("> The manual > Page 1", "Open it.")),
    "no-title": File(pdf("The manual\nOpen it."), "The manual"),
    "title-of-word": File(pdf("The manual\nOpen it.", title="Microsoft Word - manual_v3.docx"), "The manual"),
    "title-untitled": File(pdf("The manual\nOpen it.", title="untitled"), "The manual"),
    "title-untitled-document": File(pdf("The manual\nOpen it.", title="Untitled document"), "The manual"),
    "title-file-name": File(pdf("The manual\nOpen it.", title="Binder1.pdf"), "The manual"),
    "title-path": File(pdf("The manual\nOpen it.", title="C:\\Users\\ada\\manual"), "The manual"),
    "title-slides": File(pdf("The manual\nOpen it.", title="PowerPoint Presentation"), "The manual"),
    "title-with-dot": File(pdf("Open it.", title="Introduction to Node.js"), "Introduction to Node.js"),
    "title-like-program": File(pdf("Open it.", title="Document management"), "Document management"),
    "owner-rc4": File(pdf("Open it.", title="Manual", owner_password="x"), "Manual", ("Open it.",)),
    "owner-aes-128": File(pdf("Open it.", owner_password="x", algorithm="AES-128"), "Open it."),
    "owner-aes-256": File(pdf("Open it.", owner_password="x", algorithm="AES-256"), "Open it."),
    "broken-page": File(pdf("One.", "Two.", "Three.", broken=[2]), "One.", ("One.", "Three."), ("Two.",)),
    "picture-page": File(pdf("One.", "", pictures=[2]), "One.", ("One.",)),
}
OFFICE = {
    "report.docx": File(
        docx(("Title", "Resetting"), ("heading 1", "Limits"), ("Normal", "Ten a day."), ROWS),
        "Resetting",
        ("Ten a day.", "K2", "12 V"),
    ),
    "headings.docx": File(
        docx(("heading 1", "Resetting"), ("Normal", LONG), ("heading 2", "Limits"), ("Normal", LONG)),
        "Resetting",
        ("> Resetting > Limits",),
    ),
    "property.docx": File(docx(("Normal", "Press max_runs."), title="Resetting"), "Resetting", ("Press max_runs.",)),
    "program.docx": File(docx(("Normal", "Press."), title="Microsoft Word - Document1"), "Press."),
    "slides.pptx": File(
        pptx(("Resetting", "Press."), ("Limits", "Ten."), notes="Say it twice.", table=ROWS),
        "Resetting",
        ("> Resetting > Limits", "Ten.", "Say it twice.", "Model: K2; Supply: 12 V"),
    ),
    "named.pptx": File(pptx(("Welcome", "Press."), title="Resetting"), "Resetting", ("Press.",)),
    "unnamed.pptx": File(pptx(("Resetting", "Press."), title="PowerPoint Presentation"), "Resetting"),
    "prices.xlsx": File(
        xlsx({"Prices": [["Model", "Price", "Since"], ["K2", 12.0, date(2026, 5, 1)], ["K3", 24.5, None]]}),
        "Prices",
        ("Model: K2; Price: 12; Since: 2026-05-01", "Model: K3; Price: 24.5"),
    ),
    "sheets.xlsx": File(
        xlsx({"Sheet1": [["Prices of 2026"], *ROWS], "Old": ROWS[:2], "Secret": [["x", "hidden"]]}, hidden=["Secret"]),
        "Old",
        ("Prices of 2026", "Model: K3; Supply: 24 V", "Old"),
        ("hidden",),
    ),
    "property.xlsx": File(xlsx({"Sheet1": ROWS}, title="Price list"), "Price list", ("Model: K2",)),
    "comma.csv": File('Model,Supply\nK2,"12 V, DC"\n', "Model,Supply", ("Model: K2; Supply: 12 V, DC",)),
    "semicolon.csv": File("Modell;Preis\r\nK2;12,50\r\n", "Modell;Preis", ("Modell: K2; Preis: 12,50",)),
    "utf-16.csv": File("Model\tPrice\nK2\t12 €\n".encode("utf-16"), "Model Price", ("Model: K2; Price: 12 €",)),
}
TEXT = {
    "first-line": File("\n\nNotes of May\n\n# not a heading", "Notes of May", ("# not a heading",)),
    "rule-first": File("-----\nNotes of May", "Notes of May"),
    "fences-stay": File(front("title: x"), "title: x", ("title: x",)),
    "japanese": File("パスワードの初期化\n\nボタンを押す。", "パスワードの初期化", ("ボタンを押す。",)),
}
CORPUS = {
    **{f"{name}.md": file for name, file in MARKDOWN.items()},
    **{f"{name}.html": file for name, file in HTML.items()},
    **{f"{name}.htm": file for name, file in HTML_ENCODINGS.items()},
    **{f"{name}.pdf": file for name, file in PDF.items()},
    **{f"{name}.txt": file for name, file in TEXT.items()},
    **OFFICE,
}

REFUSED = {  # why a file is left out
    "password.pdf": (pdf("Open it.", password="x"), "is protected by a password"),
    "scan.pdf": (pdf("", "", pictures=[1, 2]), "is a scan: .* no text layer"),
    "broken.pdf": (pdf("One.", broken=[1]), "is broken: page 1 cannot be read"),
    "undeclared.html": (b"<h1>Geb\xfchren</h1>", r"is wrongly encoded \(expected is UTF-8"),
    "nothing.html": (b"", "is empty"),
    "no-archive.docx": (b"PK", "is broken: BadZipFile"),
    "no-archive.pptx": (b"PK", "is broken"),
    "latin-1.csv": (b"Geb\xfchr,Preis\n", r"is wrongly encoded \(expected is UTF-8"),
    "no-rows.xlsx": (xlsx({"Sheet1": []}), "is empty"),
}


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a file of the knowledge base."""
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", str(tmp_path))
    return lambda name, content: (tmp_path / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def test_the_corpus_is_large_enough():
    assert len(CORPUS) >= 80


@pytest.mark.parametrize("name", CORPUS)
def test_a_file_has_its_title_and_all_of_its_text_and_nothing_else(put, name):
    file = CORPUS[name]
    put(name, file.content)

    document = read_document(name)
    chunks = split_document(document)
    text = "\n".join(chunk.text for chunk in chunks)
    headings = {f"> {chunk.headings}" for chunk in chunks}
    assert document.title == file.title
    assert [wanted for wanted in file.has if wanted not in (headings if wanted.startswith("> ") else text)] == []
    assert [unwanted for unwanted in file.lacks if unwanted in text or unwanted in document.title] == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_named_with_what_it_is(put, name):
    content, reason = REFUSED[name]
    put(name, content)

    with pytest.raises(UnreadableDocument, match=f"^{re.escape(name)} {reason}"):
        read_document(name)


def test_pages_that_cannot_be_read_and_pages_that_are_pictures_are_named(put):
    put("manual.pdf", pdf("One.", "Two.", "", "Four.", broken=[2], pictures=[3]))

    broken, pictures = read_document("manual.pdf").notes
    assert broken.startswith("page 2 cannot be read")
    assert pictures == "pages with pictures and no text: 3"
