"""Charts for reports, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from textwrap import shorten

LONGEST_NAME = 60
BAR_INCHES = 0.28


def bar_chart(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> bytes:
    """Return an SVG image with a bar per key of each group, labelled with its value; groups stand side by side.

    :param unit: what the values are, as the name of their axis.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    keys = list(dict.fromkeys(key for values in groups.values() for key in values))
    height = 1.3 + BAR_INCHES * (len(keys) * (len(groups) + 0.6) + (len(groups) if len(groups) > 1 else 0))
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    thick = 0.8 / len(groups)
    for index, (name, values) in enumerate(groups.items()):
        places = [keys.index(key) + (index - (len(groups) - 1) / 2) * thick for key in values]
        bars = axes.barh(places, list(values.values()), thick, label=_short(name))
        axes.bar_label(bars, fmt=lambda value: f"{value:,.2f}".removesuffix(".00"), padding=3)
    axes.set_yticks(range(len(keys)), [_short(key) for key in keys])
    axes.invert_yaxis()
    if all(value == int(value) for values in groups.values() for value in values.values()):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(unit)
    axes.set_title(_short(title), loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    if len(groups) > 1:
        figure.legend(loc="outside lower left", fontsize="small", frameon=False)
    image = io.BytesIO()
    with rc_context({"svg.hashsalt": title}):  # the same numbers give the same file
        figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()


def _short(text: str) -> str:
    """Shorten a name, which may be from outside, and escape "$", which would start a formula."""
    return shorten(text, LONGEST_NAME, placeholder="…").replace("$", r"\$")
