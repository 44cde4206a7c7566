"""`include.rag.stores.weaviate_store` without a server: the schema, the requests, objects that fail, no answer.

What a server does with them is in test_vector_store.py, which runs wherever WEAVIATE_URL is set.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from include.rag.stores import weaviate_store as weaviate
from include.rag.stores.base import SearchQuery
from include.rag.stores.open import open_vector_store
from local.processes import free_ports
from tests.stores import chunks

pytestmark = pytest.mark.one_stack


class FakeCollection:
    """Stands in for `weaviate.collections.Collection`: keeps the requests, and fails objects as it is told to.

    :param outcomes: for each insert in turn, the positions that fail, or an exception to raise.
    """

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.inserted: list[list[Any]] = []
        self.deleted: list[Any] = []
        self.searches: list[tuple[str, dict[str, Any]]] = []
        self.data = SimpleNamespace(insert_many=self.insert_many, delete_many=self.delete_many)
        self.query = SimpleNamespace(
            bm25=lambda **more: self.search("bm25", **more),
            hybrid=lambda **more: self.search("hybrid", **more),
            near_vector=lambda vector, **more: self.search("near_vector", near_vector=vector, **more),
        )

    def insert_many(self, objects: list[Any]) -> Any:
        self.inserted.append(list(objects))
        outcome = self.outcomes.pop(0) if self.outcomes else []
        if isinstance(outcome, Exception):
            raise outcome
        failing = [n for n, each in enumerate(objects) if each.properties["position"] in outcome]
        return SimpleNamespace(errors={n: SimpleNamespace(message="disk is full") for n in failing})

    def delete_many(self, where: Any) -> Any:
        self.deleted.append(where)
        return SimpleNamespace(failed=0, matches=0)

    def search(self, kind: str, **arguments: Any) -> Any:
        self.searches.append((kind, arguments))
        return SimpleNamespace(objects=[])


def collection(fake: FakeCollection) -> weaviate.WeaviateCollection:
    collections = SimpleNamespace(get=lambda name: fake, exists=lambda name: True)
    return weaviate.WeaviateCollection(SimpleNamespace(collections=collections), "Help")  # type: ignore[arg-type]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(weaviate, "time", SimpleNamespace(sleep=found.append))
    return found


def positions(objects: list[Any]) -> list[int]:
    return [each.properties["position"] for each in objects]


def test_objects_that_failed_are_sent_again_and_no_others(pauses):
    fake = FakeCollection([1, 2], [2])
    collection(fake).replace_documents(chunks("a.md", "one", "two", "three", "four"), [[1.0]] * 4)

    assert [positions(objects) for objects in fake.inserted] == [[0, 1, 2, 3], [1, 2], [2]]
    assert pauses == sorted(pauses)
    assert len(pauses) == 2


def test_objects_that_fail_again_and_again_are_reported_by_name_and_reason(pauses):
    fake = FakeCollection(*[[1]] * weaviate.BATCH_TRIES)

    with pytest.raises(AirflowException, match=r"did not store 1 of 2 chunks.*a\.md chunk 1: disk is full"):
        collection(fake).replace_documents(chunks("a.md", "one", "two"), [[1.0]] * 2)
    assert len(fake.inserted) == weaviate.BATCH_TRIES
    assert fake.deleted == []  # the old version is still whole where it is longer


def test_a_batch_that_fails_as_a_whole_is_sent_again(pauses):
    from weaviate.exceptions import WeaviateBatchError, WeaviateInsertManyAllFailedError

    fake = FakeCollection(WeaviateBatchError("lost"), WeaviateInsertManyAllFailedError("all failed"))
    collection(fake).replace_documents(chunks("a.md", "one", "two"), [[1.0]] * 2)

    assert [positions(objects) for objects in fake.inserted] == [[0, 1]] * 3


def test_large_documents_go_in_several_requests(pauses):
    fake = FakeCollection()
    texts = [f"text {n}" for n in range(2 * weaviate.BATCH_OBJECTS + 1)]
    collection(fake).replace_documents(chunks("a.md", *texts), [[1.0]] * len(texts))

    assert [len(objects) for objects in fake.inserted] == [weaviate.BATCH_OBJECTS, weaviate.BATCH_OBJECTS, 1]


def test_an_object_has_the_chunks_id_its_properties_and_the_vector_that_was_given(pauses):
    fake = FakeCollection()
    (chunk,) = chunks("a.md", "one")
    collection(fake).replace_documents([chunk], [[0.5, 0.25]])

    ((stored,),) = fake.inserted
    assert str(stored.uuid) == chunk.id
    assert stored.vector == {"default": [0.5, 0.25]}
    properties = {name: value for name, value in vars(chunk).items() if name != "id"}
    assert stored.properties == {**properties, "words": "one"}


def test_every_property_of_a_chunk_is_declared_and_only_its_words_are_searched():
    from weaviate.collections.classes.config import _CollectionConfigCreate

    declared = _CollectionConfigCreate(name="Help", **weaviate.schema())._to_dict()
    (chunk,) = chunks("a.md", "one")
    assert {each["name"] for each in declared["properties"]} == vars(chunk).keys() - {"id"} | {"words"}
    assert [each["name"] for each in declared["properties"] if each.get("indexSearchable", True)] == [
        "words",
        "position",
        "document_chunks",
    ]
    (vector,) = declared["vectorConfig"].values()
    assert vector["vectorizer"] == {"none": {}}
    assert vector["vectorIndexConfig"]["distance"] == "cosine"


@pytest.mark.parametrize(
    ("text", "query"),
    [("重置K2的密码。", "密码"), ("パスワードをリセット", "リセット"), ("วิธีรีเซ็ตรหัสผ่าน", "รหัสผ่าน"), ("水を飲む", "水")],
    ids=["Chinese", "Japanese", "Thai", "one character"],
)
def test_words_without_spaces_are_stored_and_searched_as_the_same_pairs_of_characters(pauses, text, query):
    fake = FakeCollection()
    collection(fake).replace_documents(chunks("a.md", text), [[1.0]])
    collection(fake).search(SearchQuery(query, 7, mode="keyword"), [1.0])

    ((stored,),) = fake.inserted
    ((_, asked),) = fake.searches
    assert stored.properties["text"] == text
    found = set(asked["query"].split()) & set(stored.properties["words"].split())
    assert found == set(asked["query"].split()) or len(query) == 1
    assert all(len(word) <= 2 for word in asked["query"].split())


@pytest.mark.parametrize(("mode", "kind"), [("vector", "near_vector"), ("keyword", "bm25"), ("hybrid", "hybrid")])
def test_each_mode_is_one_request_with_limit_and_filters(mode, kind):
    fake = FakeCollection()
    collection(fake).search(SearchQuery("words", 7, mode=mode, filters={"format": ["pdf"]}), [1.0, 0.0])

    ((asked, arguments),) = fake.searches
    assert asked == kind
    assert arguments["limit"] == 7
    (condition,) = arguments["filters"].filters if hasattr(arguments["filters"], "filters") else [arguments["filters"]]
    assert (condition.target, condition.value) == ("format", ["pdf"])
    if mode != "vector":
        assert (arguments["query"], arguments["query_properties"]) == ("words", ["words"])
    if mode != "keyword":
        assert [1.0, 0.0] in (arguments.get("vector"), arguments.get("near_vector"))


def test_a_server_that_is_down_is_waited_for_and_named_with_what_to_check(monkeypatch):
    port, grpc_port = free_ports(2)
    conn = {
        "conn_type": "weaviate",
        "host": "127.0.0.1",
        "port": port,
        "extra": {"api_key": "k", "grpc_port": grpc_port},
    }
    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", json.dumps(conn))
    monkeypatch.setattr(weaviate, "READY_TIMEOUT_S", 2.0)
    with (
        pytest.raises(
            AirflowException, match=r"'vector_store_default': Weaviate is not ready after 2 s.*grpc_port right\?"
        ),
        open_vector_store(),
    ):
        pass
