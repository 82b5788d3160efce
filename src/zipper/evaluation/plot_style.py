"""Plot style of all figures.

Series differ in marker and line style as well as in colour, seeds are shown as a band, and figures from the
paper have their own marker.
"""

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe-Ito palette (safe for colour blindness), ordered so that neighbours differ in lightness, and two more.
COLOURS = (
    "#0072B2", "#E69F00", "#000000", "#CC79A7", "#009E73", "#56B4E9", "#D55E00", "#999999", "#661100",
)  # fmt: skip
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")
LINES = (
    "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 3)), (0, (1, 2)), (0, (6, 2)), (0, (4, 1, 1, 1)),
)  # fmt: skip
PAPERS: dict[str, Any] = {
    "color": "#B00020", "marker": "x", "linestyle": "none", "markersize": 7, "markeredgewidth": 1.8,
}  # fmt: skip
LOOK: Any = {
    "font.size": 9.0, "axes.titlesize": 9.5, "figure.titlesize": 11.0, "legend.fontsize": 8.0,
    "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "image.cmap": "magma",
    "font.sans-serif": ["DejaVu Sans", "Arial"],  # each text of an SVG names all of them
    "svg.hashsalt": "zipper", "svg.fonttype": "none",  # text as text: fewer bytes, can be searched
}  # fmt: skip
styled = rc_context(LOOK)  # decorator of drawing functions


def panels(
    rows: int, columns: int, size: tuple[float, float], sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Figure with rows x columns panels, in row-major order. size: width and height of a panel in inches."""
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(np.ravel(grid))


@styled
def save(figure: Figure, file: Path) -> Path:
    """Writes FILE.svg, byte-identical for the same figure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    file.with_suffix(".svg").write_text(_shortened(drawn.getvalue()), encoding="utf-8")
    return file.with_suffix(".svg")


def _shortened(svg: str) -> str:
    """The same picture in two thirds of the bytes: two decimals, one font, groups without numbers."""
    places = r' (?:d|x|y|transform="translate)[=(]"?[^")]*'
    svg = re.sub(places, lambda place: re.sub(r"(\.\d\d)\d+", r"\1", place[0]), svg)
    unturned, numbered = r' transform="rotate\(-0 [^"]*"', r' id="[A-Za-z0-9_.]+_\d+"'
    for unseen in (unturned, numbered, r"(?s)<metadata>.*?</metadata>\s*", r"(?m)^ +"):
        svg = re.sub(unseen, "", svg)
    named = ", ".join(f"'{name}'" for name in LOOK["font.sans-serif"])
    font = f"font-family: {named}, sans-serif"
    return svg.replace(f"; {font}", "").replace("*{", f"text{{{font}}} *{{", 1)


def line(panel: Axes, index: int, x: Sequence[float], several: Sequence[Sequence[float]], label: str) -> None:
    """Plots the mean of several measurements at each x, with their range as a band.

    index: number of the series in its panel, which selects colour, marker and line style.
    """
    means = [sum(values) / len(values) for values in several]
    panel.plot(
        x, means, label=label, color=COLOURS[index % len(COLOURS)], linestyle=LINES[index % len(LINES)],
        marker=MARKS[index % len(MARKS)] if len(x) < 16 else "", markersize=5,
    )  # fmt: skip
    if max(len(values) for values in several) > 1:
        low, high = [min(values) for values in several], [max(values) for values in several]
        panel.fill_between(x, low, high, color=COLOURS[index % len(COLOURS)], alpha=0.18, linewidth=0)


def bars(
    panel: Axes, names: Sequence[str], several: Sequence[Sequence[float]], beyond: Sequence[float] = ()
) -> None:
    """Horizontal bars of means, from top to bottom, with measurements as dots and the mean as a label.

    An entry without measurements keeps its row. beyond: for each row, an x value that the label must not
    cover.
    """
    most = [max([*values, *beyond[place : place + 1]], default=0.0) for place, values in enumerate(several)]
    for place, values in enumerate(several):
        if not values:
            continue
        mean = sum(values) / len(values)
        panel.barh(place, mean, color="0.8", edgecolor="0.25")
        if len(values) > 1:
            panel.plot(values, [place] * len(values), "o", color="black", markersize=3)
        beside = (most[place], place)
        panel.annotate(f"{mean:.1f}", beside, (7, 0), textcoords="offset points", va="center", fontsize=8)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xlim(0, 1.15 * max(most))
    panel.grid(visible=False, axis="y")
