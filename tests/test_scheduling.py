"""The DAGs of `dags/scheduling` on a real Airflow: what makes them run, and what they do then."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from examples.ask import Airflow
from include.sample.data import reviews, tickets
from local.processes import free_ports
from tests.conftest import PROJECT
from tests.stack import RunningAirflow, now, wait_until


@pytest.fixture(scope="session")
def knowledge_base(airflow: RunningAirflow) -> str:
    """A moment before the knowledge base was indexed, and its asset updated, for the first time.

    That was here, unless the demo of test_end_to_end.py or the schedule of a full hour did it.
    """
    airflow.finish("asset_producer")
    return airflow.started


def result_of(airflow: RunningAirflow, dag_id: str, run_id: str, task_id: str) -> Any:
    return airflow.xcom(dag_id, run_id, task_id, "return_value")


# Data-aware


@pytest.mark.needs_dags("asset_producer", "asset_consumer")
def test_an_update_carries_what_changed_and_starts_the_consumer(airflow, knowledge_base):
    (event,) = airflow.asset_events("knowledge_base")
    documents = len(list((PROJECT / "include" / "knowledge_base").glob("*.md")))
    assert {name: event["extra"][name] for name in ("added", "changed", "removed")} == {
        "added": documents,
        "changed": 0,
        "removed": 0,
    }
    assert event["extra"]["chunks"] > documents

    (run_id,) = airflow.wait_for_run_by_asset("asset_consumer", knowledge_base)
    news = Path(result_of(airflow, "asset_consumer", run_id, "write_news")["news"].removeprefix("file://"))
    assert news.read_text().count("- added: ") == documents


@pytest.mark.needs_dags("asset_producer")
def test_nothing_changed_means_no_update(airflow, knowledge_base):
    run_id = airflow.finish("asset_producer")

    assert set(airflow.states("asset_producer", run_id).values()) == {"skipped"}
    assert len(airflow.asset_events("knowledge_base")) == 1


@pytest.mark.needs_dags("asset_producer", "asset_consumer")
def test_of_many_updates_in_a_row_none_is_lost(airflow, knowledge_base):
    before = now()
    folder = airflow.home / "artifacts" / "many"
    folder.mkdir()

    def update(number: int) -> None:
        file = folder / f"{number}.json"
        file.write_text(json.dumps({"added": [f"document-{number}.md"], "changed": [], "removed": []}))
        airflow.update_asset("knowledge_base", {"changes": file.as_uri()})

    def reported() -> set[str]:
        runs = airflow.runs_by_assets("asset_consumer", before)
        news = [result_of(airflow, "asset_consumer", run_id, "write_news") for run_id in runs]
        texts = [Path(each["news"].removeprefix("file://")).read_text() for each in news if each]
        return set(re.findall(r"document-\d+", "".join(texts)))

    first = {f"document-{number}" for number in range(30)}
    numbers = itertools.count()
    for _ in first:
        update(next(numbers))

    def all_reported() -> bool:
        # An update that comes while a run is being made is only in the next run, so there must be a next one.
        update(next(numbers))
        time.sleep(1)
        return first <= reported()

    wait_until(all_reported)


@pytest.mark.one_stack
@pytest.mark.needs_dags("asset_producer", "any_asset")
def test_an_event_that_names_a_file_elsewhere_is_left_out_and_named(airflow, knowledge_base):
    before = now()
    airflow.update_asset("customer_reviews", {"file": "file:///etc/passwd"})
    (run_id,) = airflow.wait_for_run_by_asset("any_asset", before)
    log = "\n".join(airflow.log("any_asset", run_id, "collect_reviews", 1))

    assert "'file:///etc/passwd' is not a file on this project's storage" in log
    assert "root:" not in log
    assert set(airflow.states("any_asset", run_id).values()) == {"skipped"}


@pytest.mark.needs_dags("feedback_intake", "any_asset", "all_assets")
def test_either_asset_starts_the_or_and_only_both_start_the_and(airflow):
    def land(*sources: str) -> str:
        before = now()
        airflow.finish("feedback_intake", {"sources": list(sources)})
        return before

    start = now()
    runs_of_and = lambda: len(airflow.runs_by_assets("all_assets", start))  # noqa: E731
    first = land("reviews")
    (by_reviews,) = airflow.wait_for_run_by_asset("any_asset", first)  # the scheduler has seen the update
    assert "1 update(s) of the reviews" in result_of(airflow, "any_asset", by_reviews, "publish_report")["result"]
    land("reviews")
    assert runs_of_and() == 0

    land("tickets")
    (both,) = airflow.wait_for_run_by_asset("all_assets", start)
    counts = f"{2 * len(reviews())} reviews and {len(tickets())} tickets"
    assert counts in result_of(airflow, "all_assets", both, "write_digest")["result"]

    land("tickets")
    asked = now()
    airflow.update_asset("report_request")
    (by_request,) = airflow.wait_for_run_by_asset("any_asset", asked)
    assert "1 request(s)" in result_of(airflow, "any_asset", by_request, "publish_report")["result"]
    assert runs_of_and() == 1

    land("reviews")
    airflow.wait_for_run_by_asset("all_assets", start, count=2)


@pytest.mark.needs_dags("asset_producer", "asset_or_time")
def test_asset_or_time_runs_by_either_and_tells_which(airflow, knowledge_base):
    (run_id,) = airflow.wait_for_run_by_asset("asset_or_time", knowledge_base)[-1:]
    checked = result_of(airflow, "asset_or_time", run_id, "check_retrieval")
    assert re.fullmatch(r"\d+ update\(s\) of the knowledge base", checked["because"])
    assert int(re.search(r"(\d+) of 30 questions", checked["result"])[1]) > 10

    def by_time() -> list[dict[str, Any]]:
        runs = airflow.get("dags/asset_or_minute/dagRuns", run_type="scheduled", order_by="-run_after")["dag_runs"]
        return [run for run in runs if run["state"] == "success"]

    run = wait_until(by_time)[0]
    result = result_of(airflow, "asset_or_minute", run["dag_run_id"], "check_retrieval")
    assert result is None or result["because"] == "the time"  # None: before the knowledge base was indexed


# On demand

MESSAGE = "Our invoice of October is wrong, please correct it."


def ask(airflow: RunningAirflow, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/ask.py", *arguments],
        cwd=PROJECT,
        env={**os.environ, "AIRFLOW_URL": airflow.url, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


def assert_is_an_answer(answer: dict[str, Any]) -> None:
    assert answer["category"] in ("billing", "technical", "account")
    assert answer["urgency"] in ("low", "medium", "high")
    assert answer["summary"]


@pytest.mark.needs_dags("on_demand_inference")
def test_the_client_prints_the_answer(airflow):
    done = ask(airflow, MESSAGE)
    assert done.returncode == 0, done.stderr
    assert_is_an_answer(json.loads(done.stdout))


@pytest.mark.needs_dags("on_demand_inference")
def test_one_key_from_many_clients_at_once_is_one_run_and_one_answer(airflow):
    with ThreadPoolExecutor(4) as clients:
        done = list(clients.map(lambda _: ask(airflow, MESSAGE, "--key", "my:key~42+1"), range(4)))

    assert [each.returncode for each in done] == [0] * 4, done
    assert len({each.stdout for each in done}) == 1
    runs = airflow.get("dags/on_demand_inference/dagRuns", limit=100)["dag_runs"]
    assert [run["dag_run_id"] for run in runs].count("my:key~42+1") == 1
    other = ask(airflow, "Another question, please.", "--key", "my:key~42+1")
    assert other.returncode == 1
    assert "was used for another question" in other.stderr


@pytest.mark.needs_dags("on_demand_inference")
def test_an_answer_that_is_late_can_be_fetched_with_its_key(airflow):
    early = ask(airflow, MESSAGE, "--key", "late", "--timeout", "0")
    assert early.returncode == 1
    assert "Ask again with this key" in early.stderr

    assert_is_an_answer(json.loads(ask(airflow, MESSAGE, "--key", "late").stdout))


@pytest.mark.needs_dags("on_demand_inference")
@pytest.mark.parametrize(
    ("conf", "named"),
    [({"message": "x"}, "message"), ({"message": 7}, "message"), ({"message": None}, "message"), ("no object", "conf")],
)
def test_a_wrong_body_is_refused_with_the_name_of_the_field(airflow, conf, named):
    count = lambda: airflow.get("dags/on_demand_inference/dagRuns")["total_entries"]  # noqa: E731
    before = count()
    refused = airflow.post("dags/on_demand_inference/dagRuns", {"logical_date": None, "conf": conf})

    assert refused.status_code in (400, 422)
    assert named in refused.text
    assert count() == before


@pytest.mark.needs_dags("on_demand_inference")
def test_the_client_says_which_field_is_wrong_and_who_cannot_be_reached(airflow):
    assert "message" in ask(airflow, "x").stderr
    (nobody,) = free_ports(1)
    lost = ask(airflow, MESSAGE, "--timeout", "1", AIRFLOW_URL=f"http://127.0.0.1:{nobody}")
    assert lost.returncode == 1
    assert f"http://127.0.0.1:{nobody}" in lost.stderr
    assert "Traceback" not in lost.stderr
    refused = ask(airflow, MESSAGE, AIRFLOW_TOKEN="nonsense")
    assert "401" in refused.stderr or "403" in refused.stderr


@pytest.mark.needs_dags("on_demand_inference")
def test_thirty_clients_at_once_are_answered_with_at_most_ten_requests_each(airflow):
    sent = Counter()

    def answer(number: int) -> Any:
        client = Airflow(airflow.url)
        client._http.event_hooks["request"] = [lambda _: sent.update([number])]
        return client.ask({"message": f"{MESSAGE} Number {number}."}, f"burst-{number}", timeout=600)

    with ThreadPoolExecutor(30) as clients:
        answers = list(clients.map(answer, range(30)))

    for each in answers:
        assert_is_an_answer(each)
    assert max(sent.values()) <= 10
    assert airflow.health()["scheduler"] == "healthy"


@pytest.mark.needs_dags("on_demand_inference")
@pytest.mark.parametrize(
    "run_id",
    [".", "..", "...", "~", "../x", "a/b", "/", "x" * 201, "x" * 250, "\u6f22" * 29, "a\n", "a\x00b", "a\x1b", "a b"],
)
def test_a_run_id_that_is_no_name_of_a_folder_is_refused(airflow, run_id):
    body = {"dag_run_id": run_id, "logical_date": None, "conf": {"message": MESSAGE}}
    refused = airflow.post("dags/on_demand_inference/dagRuns", body)

    assert refused.status_code in (400, 422)
    assert airflow.health()["scheduler"] == "healthy"


@pytest.mark.needs_dags("on_demand_inference")
@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_curl_commands_of_the_readme_get_an_answer(airflow):
    readme = (PROJECT / "README.md").read_text()
    (commands,) = re.findall(r"```bash\n(TOKEN=.*?)```", readme, re.DOTALL)
    script = commands.replace("http://127.0.0.1:8080", airflow.url)
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, timeout=600)

    assert done.returncode == 0, done.stderr
    assert_is_an_answer(json.loads(done.stdout.splitlines()[-1])["value"])


# Mapping


@pytest.mark.needs_dags("map_expand")
def test_mapping_edges_on_a_real_scheduler(airflow):
    """An empty list, a failing item, and more items than Airflow maps: side by side, as each takes a while."""
    confs = {
        "empty": {"messages": []},
        "failing": {"messages": ["Call +49 30 1234567.", " ", "Fine."]},
        "too many": {"messages": ["Hello."] * 1100},
    }
    runs = {name: airflow.trigger("map_expand", conf) for name, conf in confs.items()}
    ends = {name: airflow.wait_for("map_expand", run_id) for name, run_id in runs.items()}
    report = {name: result_of(airflow, "map_expand", run_id, "report") for name, run_id in runs.items()}

    assert ends == {"empty": "success", "failing": "success", "too many": "failed"}
    assert report["empty"] == {"masked": [], "result": "0 of 0 messages masked"}
    assert report["failing"] == {
        "masked": ["Call [phone].", None, "Fine."],
        "result": "2 of 3 messages masked; failed: message 2",
    }
    log = "\n".join(airflow.log("map_expand", runs["too many"], "get_messages", 1))
    assert "1100 items are too many" in log
    assert "map_chunks" in log
