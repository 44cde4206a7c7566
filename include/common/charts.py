"""Charts for reports, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping


def bar_chart(title: str, groups: Mapping[str, Mapping[str, float]]) -> bytes:
    """Return an SVG image with a bar per key of each group, labelled with its value; groups stand side by side."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(groups)
    for index, (name, values) in enumerate(groups.items()):
        places = [place + (index - (len(groups) - 1) / 2) * width for place in range(len(values))]
        bars = axes.bar(places, list(values.values()), width, label=name)
        axes.bar_label(bars, fmt=lambda value: f"{value:,.2f}".removesuffix(".00"))
        axes.set_xticks(range(len(values)), list(values))
    if len(groups) > 1:
        axes.legend(fontsize="small")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
    image = io.BytesIO()
    with rc_context({"svg.hashsalt": title}):  # the same numbers give the same file
        figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()
