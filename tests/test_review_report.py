"""The report of the batch inference DAG: `include.sample.review_report`, and the chart of `include.common.charts`."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from include.common.charts import bar_chart
from include.sample.review_report import summarize_reviews

pytestmark = pytest.mark.one_stack


def answers(*sentiments):
    return [sentiment and {"sentiment": sentiment, "summary": "..."} for sentiment in sentiments]


def rows(*labels):
    return [
        {"review_id": f"R{n}", "review": "..."} | ({"sentiment": label} if label else {})
        for n, label in enumerate(labels, 1)
    ]


def test_answers_are_counted_and_compared_with_the_labels():
    report = summarize_reviews(
        rows("positive", "positive", "negative", "neutral"), answers("positive", "negative", "negative", "neutral")
    )

    assert report["counts"] == {"positive": 1, "negative": 2, "neutral": 1}
    assert report["accuracy"] == 0.75
    assert report["failed"] == []
    assert report["summary"] == "1 positive, 2 negative, 1 neutral; agrees with 3 of 4 labels (75 %)"


def test_failed_rows_are_named_and_do_not_count_as_wrong():
    report = summarize_reviews(rows("positive", "negative"), answers("positive", None))

    assert report["accuracy"] == 1
    assert report["failed"] == ["R2"]
    assert report["rows"] == [{"review_id": "R1", "sentiment": "positive", "summary": "..."}, {"review_id": "R2"}]
    assert report["summary"].endswith("agrees with 1 of 1 labels (100 %); failed: R2")


def test_only_rows_with_a_label_are_compared():
    assert summarize_reviews(rows("positive", None), answers("negative", "positive"))["accuracy"] == 0
    assert summarize_reviews(rows(None), answers("positive"))["accuracy"] is None
    assert summarize_reviews([], [])["summary"] == "0 positive, 0 negative, 0 neutral"


def test_rows_and_answers_of_different_number_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        summarize_reviews(rows("positive", "positive"), answers("positive"))


@pytest.mark.parametrize(
    "counts",
    [{"positive": 3, "negative": 0}, {"only": 1}, {"a < b & c": 2}, {"$\\frac{": 1, "x" * 300: 2}, {"none": 0}],
)
def test_a_chart_is_a_valid_svg_image(counts):
    image = ElementTree.fromstring(bar_chart("Who & what?", "rows", {"rows": counts}))  # noqa: S314

    assert image.tag == "{http://www.w3.org/2000/svg}svg"
    bars = image.findall(".//{*}path[@clip-path]")
    assert len(bars) == len(counts)
