"""`include.rag.stores`: one contract for every store. On Weaviate it runs wherever WEAVIATE_URL is set."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from include.rag.stores.base import SearchQuery
from include.rag.stores.open import open_vector_store
from tests.stores import chunks, delete_collections, each_store, lancedb_connection

pytestmark = pytest.mark.one_stack

EAST, NORTH, UP = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


@pytest.fixture(params=["lancedb", "weaviate"])
def prefix(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Names that begin so are this test's."""
    name = each_store(request, tmp_path, monkeypatch)
    yield name
    if request.param == "weaviate":
        delete_collections(name)


@pytest.fixture
def store(prefix: str) -> Iterator[Any]:
    with open_vector_store() as store:
        yield store


@pytest.fixture
def collection(store: Any, prefix: str) -> Any:
    found = store.collection(f"{prefix}_help")
    found.create(dimension=3)
    return found


def put(collection: Any, source: str, *texts: str, vector: list[float] = EAST, format: str = "markdown") -> None:
    collection.replace_documents(chunks(source, *texts, format=format), [vector] * len(texts))


def found(collection: Any, text: str = "", vector: list[float] = EAST, limit: int = 10, **query: Any) -> list[str]:
    return [hit.source for hit in collection.search(SearchQuery(text, limit, **query), vector)]


def test_a_collection_that_does_not_exist_reads_as_an_empty_one(store, prefix):
    collection = store.collection(f"{prefix}_nothing")

    assert collection.count() == 0
    assert collection.documents() == {}
    assert found(collection, "word", mode="hybrid") == []
    collection.delete_documents(["a.md"])


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
def test_an_empty_collection_finds_nothing(collection, mode):
    assert found(collection, "word", mode=mode) == []


def test_creating_a_collection_that_is_there_changes_nothing(collection):
    put(collection, "a.md", "one")
    collection.create(dimension=3)

    assert collection.count() == 1


def test_a_vector_search_finds_best_first_and_tells_all_of_a_chunk(collection):
    put(collection, "east.md", "to the east", vector=EAST)
    put(collection, "north.md", "to the north", vector=NORTH)
    put(collection, "up.md", "up", vector=UP)

    first, second = collection.search(SearchQuery("", limit=2), [0.8, 0.6, 0.0])

    (chunk,) = chunks("east.md", "to the east")
    names = ("id", "source", "title", "headings", "position", "text")
    assert {name: getattr(first, name) for name in names} == {name: getattr(chunk, name) for name in names}
    assert second.source == "north.md"
    assert [first.score, second.score] == pytest.approx([0.8, 0.6], abs=1e-5)
    assert collection.search(SearchQuery("", 3), [-1.0, 0.0, 0.0])[-1].score == pytest.approx(-1, abs=1e-5)


def test_a_keyword_search_finds_words_whatever_their_vector_and_case(collection):
    put(collection, "code.md", "Fault F3: replace the backup battery", vector=NORTH)
    put(collection, "other.md", "nothing of that kind", vector=EAST)

    assert found(collection, "what is f3", EAST, mode="keyword") == ["code.md"]
    assert found(collection, "elephants", EAST, mode="keyword") == []


def test_a_rare_word_counts_more_than_a_common_one(collection):
    for n in range(5):
        put(collection, f"{n}.md", f"the battery of vehicle number {n}")
    put(collection, "rare.md", "the gyroscope of a vehicle")

    assert found(collection, "gyroscope battery", mode="keyword")[0] == "rare.md"


def test_the_score_is_the_cosine_in_every_mode(collection):
    put(collection, "code.md", "Fault F3", vector=[0.6, 0.8, 0.0])

    for mode in ("vector", "keyword", "hybrid"):
        (hit,) = collection.search(SearchQuery("F3", limit=3, mode=mode), EAST)
        assert hit.score == pytest.approx(0.6, abs=1e-5)


def test_a_hybrid_search_finds_what_either_of_the_two_finds_and_first_what_both_do(collection):
    put(collection, "both.md", "battery fault", vector=[0.9, 0.1, 0.0])
    put(collection, "near.md", "something else", vector=EAST)
    put(collection, "word.md", "fault", vector=UP)
    for n in range(6):
        put(collection, f"far-{n}.md", "neither", vector=NORTH)

    hits = found(collection, "battery fault", EAST, limit=4, mode="hybrid")

    assert hits[0] == "both.md"
    assert {"near.md", "word.md"} < set(hits)


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
def test_filters_are_applied_before_the_limit(collection, mode):
    for n in range(20):
        put(collection, f"{n}.md", "the word", vector=EAST)
    put(collection, "wanted.pdf", "the word, far off", vector=UP, format="pdf")
    put(collection, "also.md", "the word", vector=UP)

    def search(**filters: list[str]) -> set[str]:
        return set(found(collection, "word", EAST, 2, mode=mode, filters=filters))

    assert search(format=["pdf"]) == {"wanted.pdf"}
    assert search(source=["wanted.pdf", "also.md"]) == {"wanted.pdf", "also.md"}
    assert search(source=["wanted.pdf", "also.md"], format=["markdown"]) == {"also.md"}
    assert search(title=["ALSO.MD"]) == {"also.md"}
    assert search(source=["also"]) == set()


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
@pytest.mark.parametrize("text", ["???", "the", 'word" AND (source:*', "' OR 1=1 --", "+-word~", "Größe 字"])
def test_any_text_can_be_searched_for(collection, mode, text):
    put(collection, "a.md", "one word of many")

    assert set(found(collection, text, mode=mode)) <= {"a.md"}


def test_an_unknown_mode_or_filter_or_no_words_are_named():
    with pytest.raises(ValueError, match=r"'fuzzy'.*vector, keyword or hybrid"):
        SearchQuery("", 1, mode="fuzzy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="A hybrid search needs words"):
        SearchQuery("  ", 1, mode="hybrid")
    with pytest.raises(ValueError, match=r"author.*source, title, format"):
        SearchQuery("", 1, filters={"author": ["x"]})


def test_storing_the_same_document_again_changes_nothing(collection):
    for _ in range(2):
        put(collection, "a.md", "one", "two")

    assert collection.count() == 2
    assert collection.documents() == {"a.md": "one+two"}


def test_a_new_version_leaves_nothing_of_the_old_one_and_other_documents_alone(collection):
    put(collection, "a.md", "one", "two", "three")
    put(collection, "b.md", "other")
    put(collection, "a.md", "new")

    assert {hit.text for hit in collection.search(SearchQuery("", 10), EAST)} == {"new", "other"}
    assert collection.documents() == {"a.md": "new", "b.md": "other"}
    assert found(collection, "three", mode="keyword") == []
    assert found(collection, "new", mode="keyword") == ["a.md"]


def test_two_documents_that_change_places_leave_nothing_of_each_other(collection):
    one, other = ["one", "two", "three"], ["four"]
    put(collection, "a.md", *one)
    put(collection, "b.md", *other)
    swapped = chunks("a.md", *other) + chunks("b.md", *one)
    collection.replace_documents(swapped, [EAST] * len(swapped))

    assert collection.count() == 4
    assert collection.documents() == {"a.md": "four", "b.md": "one+two+three"}


def test_a_document_of_which_chunks_are_missing_or_old_is_not_complete(collection):
    collection.replace_documents(chunks("a.md", "one", "two")[:1], [EAST])
    put(collection, "b.md", "one", "two")
    put(collection, "c.md", "old", "two")
    stored = chunks("c.md", "new", "two")[:1]
    stored += chunks("c.md", "old", "two")[1:]
    collection.replace_documents(stored, [EAST, EAST])

    assert collection.documents() == {"a.md": "", "b.md": "one+two", "c.md": ""}


def test_stored_vectors_are_found_by_the_checksum_of_their_chunk(collection):
    put(collection, "a.md", "one", vector=NORTH)
    put(collection, "b.md", "two", vector=UP)

    known = collection.known_vectors(["checksum of one", "checksum of another"])
    assert {checksum: list(vector) for checksum, vector in known.items()} == {"checksum of one": NORTH}
    assert collection.known_vectors([]) == {}


def test_deleting_a_document_removes_all_its_chunks_and_no_others(collection):
    put(collection, "a.md", "one", "two")
    put(collection, "b.md", "other")
    collection.delete_documents(["a.md", "never-stored.md"])
    collection.delete_documents([])

    assert collection.documents() == {"b.md": "other"}
    assert collection.count() == 1


@pytest.mark.parametrize(
    "name", ["driver's-guide.md", "a' OR '1'='1.md", 'say "hi".md', "100%_\\.md", "Größe.md", "A.md"]
)
def test_names_with_quotes_and_other_signs_are_only_names(collection, name):
    put(collection, "a.md", "stays")
    put(collection, name, "one", "two")
    put(collection, name, "new")
    assert collection.documents() == {"a.md": "stays", name: "new"}
    assert found(collection, filters={"source": [name]}) == [name]

    collection.delete_documents([name])
    assert collection.documents() == {"a.md": "stays"}


def test_many_documents_are_stored_read_and_deleted_whole(collection):
    many = [chunk for n in range(1500) for chunk in chunks(f"{n}.md", f"one of {n}", f"two of {n}")]
    collection.replace_documents(many, [EAST] * len(many))
    collection.optimize()

    assert collection.documents().keys() == {f"{n}.md" for n in range(1500)}
    assert collection.count() == 3000
    assert len(collection.known_vectors([chunk.checksum for chunk in many])) == 3000
    collection.delete_documents([f"{n}.md" for n in range(1499)])
    assert collection.documents().keys() == {"1499.md"}


def test_what_was_stored_is_found_at_once_and_after_optimizing(collection):
    for n, text in enumerate(["first word", "second word"]):
        put(collection, f"{n}.md", text)
        assert len(found(collection, "word", mode="keyword")) == n + 1
        collection.optimize()
        assert len(found(collection, "word", mode="keyword")) == n + 1


def test_collections_are_apart(store, collection, prefix):
    put(collection, "a.md", "one")

    assert store.collection(f"{prefix}_other").count() == 0


def test_an_alias_points_at_one_collection_and_its_predecessor_is_deleted(store, prefix):
    old, new = f"{prefix}_old", f"{prefix}_new"
    assert store.active(f"{prefix}_help") is None
    for name in (old, new):
        store.collection(name).create(dimension=3)
        put(store.collection(name), "a.md", "one")

    store.activate(f"{prefix}_help", old)
    store.activate(f"{prefix}_help", old)
    assert store.active(f"{prefix}_help") == old
    store.activate(f"{prefix}_help", new)

    assert store.active(f"{prefix}_help") == new
    assert store.collection(new).count() == 1
    assert store.collection(old).count() == 0


def at_once(number: int, work: Callable[[int], None]) -> None:
    barrier = threading.Barrier(number)

    def start(index: int) -> None:
        barrier.wait(timeout=300)
        work(index)

    with ThreadPoolExecutor(number) as pool:
        list(pool.map(start, range(number)))


@pytest.mark.parametrize("share", [False, True], ids=["other documents", "the same documents"])
def test_writers_at_once_lose_and_duplicate_nothing(collection, prefix, share):
    put(collection, "first.md", "one")

    def write(writer: int) -> None:
        with open_vector_store() as store:
            for document in range(3):
                name = f"{0 if share else writer}-{document}.md"
                put(store.collection(f"{prefix}_help"), name, "one", "two")

    at_once(4, write)

    documents = 3 if share else 12
    assert len(collection.documents()) == 1 + documents
    assert collection.count() == 1 + 2 * documents


def test_two_who_create_and_activate_the_same_collection_at_once_do_no_harm(store, prefix):
    def create(_: int) -> None:
        with open_vector_store() as store:
            store.collection(f"{prefix}_help1").create(dimension=3)
            put(store.collection(f"{prefix}_help1"), "a.md", "one")
            store.activate(f"{prefix}_help", f"{prefix}_help1")

    at_once(3, create)

    assert store.active(f"{prefix}_help") == f"{prefix}_help1"
    assert store.collection(f"{prefix}_help1").count() == 1
    assert found(store.collection(f"{prefix}_help1"), "one", mode="keyword") == ["a.md"]


@pytest.mark.parametrize("prefix", ["lancedb"], indirect=True)
@pytest.mark.parametrize("step", ["create_index", "merge_insert"])
def test_a_table_replaced_by_another_creator_is_made_and_written_again(store, prefix, step, monkeypatch):
    import lancedb
    from lancedb.table import LanceTable

    collection = store.collection(f"{prefix}_help")
    original = getattr(LanceTable, step)
    db = lancedb.connect(json.loads(os.environ["AIRFLOW_CONN_VECTOR_STORE_DEFAULT"])["host"])

    def after_another_creator(table: Any, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(LanceTable, step, original)
        db.create_table(table.name, schema=table.schema, mode="overwrite")
        return original(table, *args, **kwargs)

    monkeypatch.setattr(LanceTable, step, after_another_creator)
    collection.create(dimension=3)
    put(collection, "a.md", "one")

    assert getattr(LanceTable, step) is original
    assert collection.count() == 1
    collection.create(dimension=3)
    assert found(collection, "one", mode="keyword") == ["a.md"]


LANGUAGES = {  # a sentence, and a word in it
    "Chinese": ("如何重置密码并登录系统", "密码"),
    "Japanese": ("パスワードをリセットする方法", "パスワード"),
    "Japanese, Kanji": ("請求書の支払期限は三十日です", "支払期限"),
    "Thai": ("วิธีรีเซ็ตรหัสผ่านของคุณ", "รหัสผ่าน"),
    "German": ("Die Rückgabefrist beträgt vierzehn Tage.", "Rückgabefrist"),
    "German, capitals": ("Fällige Gebühren zahlen Sie vor Ort.", "GEBÜHREN"),
    "French": ("L'étiquette du boîtier est abîmée.", "boîtier"),
    "Russian": ("Как сбросить пароль от учётной записи", "пароль"),
    "Korean": ("비밀번호 재설정 방법", "비밀번호"),
    "Arabic": ("كيفية إعادة تعيين كلمة المرور", "المرور"),
    "Hindi": ("अपना पासवर्ड कैसे बदलें", "पासवर्ड"),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_word_is_found_in_its_language(collection, language):
    for name, (sentence, _) in LANGUAGES.items():
        put(collection, f"{name}.md", sentence)

    assert found(collection, LANGUAGES[language][1], mode="keyword")[:1] == [f"{language}.md"]


def test_a_collection_of_before_gets_an_index_that_knows_words_without_spaces(tmp_path, monkeypatch):
    from lancedb.index import FTS

    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", lancedb_connection(tmp_path))
    with open_vector_store() as store:
        collection = store.collection("Old")
        collection.create(dimension=3)
        put(collection, "a.md", LANGUAGES["Chinese"][0])
        store._db.open_table("Old").create_index("text", config=FTS())
        assert found(collection, "密码", mode="keyword") == []
        collection.create(dimension=3)
        assert found(collection, "密码", mode="keyword") == ["a.md"]


def test_a_copy_without_the_module_for_weaviate_says_what_it_takes(monkeypatch):
    monkeypatch.setitem(sys.modules, "include.rag.stores.weaviate_store", None)
    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", json.dumps({"conn_type": "weaviate", "host": "x"}))

    with (
        pytest.raises(
            AirflowFailException, match=r"include/rag/stores/weaviate_store\.py and the package apache-airflow"
        ),
        open_vector_store(),
    ):
        pass


def test_a_connection_of_another_type_is_named_with_what_is_supported(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", json.dumps({"conn_type": "sqlite", "host": "x"}))

    with (
        pytest.raises(
            AirflowFailException, match=r"'vector_store_default' has the type 'sqlite'.*'lancedb'.*'weaviate'"
        ),
        open_vector_store(),
    ):
        pass


@pytest.mark.parametrize("prefix", ["weaviate"], indirect=True)
def test_a_refused_key_fails_at_once_and_names_the_setting(prefix, monkeypatch):
    conn = json.loads(os.environ["AIRFLOW_CONN_VECTOR_STORE_DEFAULT"])
    good = json.dumps(conn)
    conn["extra"]["api_key"] = "a-wrong-key"
    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", json.dumps(conn))
    monkeypatch.setattr("include.rag.stores.weaviate_store.READY_TIMEOUT_S", 3600.0)  # it does not wait that long

    with (
        pytest.raises(AirflowFailException, match=r"refused the key\. Set extra\.api_key") as error,
        open_vector_store(),
    ):
        pass
    assert "a-wrong-key" not in str(error.value)
    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", good)
