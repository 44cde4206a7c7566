"""Charts for reports, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping


def bar_chart(title: str, counts: Mapping[str, int]) -> bytes:
    """A bar per key, labelled with its count, as an SVG image."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(list(counts), list(counts.values()), color="#017cee")
    axes.bar_label(bars)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
    image = io.BytesIO()
    with rc_context({"svg.hashsalt": title}):  # the same counts give the same file
        figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()
