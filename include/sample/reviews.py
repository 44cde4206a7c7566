"""The sample reviews, as a file."""

from pathlib import Path

REVIEWS = Path(__file__).with_name("reviews.csv")  # 200 rows: review_id, review, sentiment
