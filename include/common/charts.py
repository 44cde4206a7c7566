"""Charts for reports, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bar_chart(title: str, counts: Mapping[str, int]) -> bytes:
    """A bar per key, labelled with its count, as an SVG image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(list(counts), list(counts.values()), color="#017cee")
    axes.bar_label(bars)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
    return _svg(figure, title)


def grouped_bar_chart(title: str, groups: Mapping[str, Mapping[str, float]]) -> bytes:
    """For each group (say, a model) a bar per key with its value from 0 to 1, side by side, as an SVG image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(groups)
    for index, (name, values) in enumerate(groups.items()):
        places = [place + (index - (len(groups) - 1) / 2) * width for place in range(len(values))]
        bars = axes.bar(places, list(values.values()), width, label=name)
        axes.bar_label(bars, fmt="%.2f")
        axes.set_xticks(range(len(values)), list(values))
    axes.set_ylim(0, 1.15)
    axes.set_title(title)
    axes.legend(loc="upper left", fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure, title)


def _svg(figure: Figure, title: str) -> bytes:
    from matplotlib import rc_context

    image = io.BytesIO()
    with rc_context({"svg.hashsalt": title}):  # the same numbers give the same file
        figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()
