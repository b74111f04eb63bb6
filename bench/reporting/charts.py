"""A plot as a drawing that stands inside a page: colours are the page's own, so that they follow its light or dark."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.reporting.measures import Plot, thinned
from bench.reporting.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH, HEIGHT = 6.4, 3.2  # inches
# Colours that no line has, in the place of which the page's variables are written.
INK, FAINT = "#010101", "#020202"
SERIES = tuple(f"#0303{number:02x}" for number in range(6))
VARIABLES = {INK: "--ink", FAINT: "--faint", **{colour: f"--line-{i}" for i, colour in enumerate(SERIES)}}
DASHES = ("solid", "dashed", "dotted", "dashdot")
# Of one line, so that a page of many stays small.
DRAWN_POINTS = 400
# Beyond it, markers would hide their line.
MARKED = 40
# Beyond it, a legend beside the drawing would leave no room for it.
NAMED = 16
SETTINGS: dict[Any, Any] = {
    # Text stays text: smaller, and found by the reader's search.
    "svg.fonttype": "none",
    "svg.hashsalt": "plot",
    # Names are no formulas, whatever signs they have.
    "text.parse_math": False,
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
}


def drawn(plot: Plot, name: str) -> str:
    """The SVG element of a plot, empty if it has no point; `name` makes its ids different from those of others."""
    import matplotlib

    if not any(plot.series.values()):
        return ""
    text = io.StringIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # Letters that the font lacks are drawn by the browser; an axis with nothing above 0 stays linear.
        warnings.simplefilter("ignore", UserWarning)
        _figure(plot).savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inlined(text.getvalue(), plot.title, name)


def _figure(plot: Plot) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    styles = itertools.product(DASHES, SERIES)
    lines = {}
    for (series, points), (dash, colour) in zip(plot.series.items(), itertools.cycle(styles), strict=False):
        if points:
            lines[series] = _line(axes, plot, thinned(points, DRAWN_POINTS), colour, dash)
    if plot.logarithmic:
        _logarithmic(axes, plot)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    if plot.kind == "histogram":
        axes.set_ylim(bottom=0)
    if len(lines) > 1:
        _legend(axes, lines)
    return figure


def _logarithmic(axes: Axes, plot: Plot) -> None:
    """The axis of the values, if there are any above 0, with numbers as they stand in tables."""
    from matplotlib.ticker import FuncFormatter

    across = plot.kind == "histogram"
    values = [point[not across] for points in plot.series.values() for point in points if point[not across] > 0]
    if not values:
        return
    (axes.set_xscale if across else axes.set_yscale)("log", nonpositive="mask")
    axis = axes.xaxis if across else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, place: number(value)))
    shown = "25" if max(values) < 100 * min(values) else ""
    axis.set_minor_formatter(FuncFormatter(lambda value, place: number(value) if f"{value:.0e}"[0] in shown else ""))


def _line(axes: Axes, plot: Plot, points: Sequence[tuple[float, float]], colour: str, dash: str) -> Line2D:
    if plot.kind == "histogram":
        edges, counts = _outline(sorted(points))
        axes.fill_between(edges, counts, color=colour, alpha=0.25, linewidth=0)
        return axes.plot(edges, counts, color=colour, linestyle=dash, linewidth=1.0)[0]
    x, y = zip(*points, strict=True)
    marker = "o" if len(points) <= MARKED else ""
    steps = "steps-post" if plot.kind == "timeline" else "default"
    style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.3, "marker": marker, "markersize": 3.0}
    return axes.plot(x, y, drawstyle=steps, **style)[0]


def _outline(bins: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Of bars around the middles of bins; those of bins that are far apart do not touch."""
    middles = [middle for middle, _ in bins]
    width = min((after - before for before, after in itertools.pairwise(middles) if after > before), default=1.0)
    x: list[float] = []
    y: list[float] = []
    for middle, count in bins:
        left, right = middle - width / 2, middle + width / 2
        if x and left - x[-1] < 0.01 * width:
            # Takes back the fall of the bar before.
            x.pop()
            y.pop()
            x += [left, right, right]
            y += [count, count, 0.0]
        else:
            x += [left, left, right, right]
            y += [0.0, count, count, 0.0]
    return x, y


def _legend(axes: Axes, lines: dict[str, Line2D]) -> None:
    # Names that begin with an underscore would be left out.
    named = [(line, f" {name}") for name, line in itertools.islice(lines.items(), NAMED)]
    if len(lines) > NAMED:
        named.append((axes.plot([], [])[0], f" and {len(lines) - NAMED} more"))
        named[-1][0].set_color("none")
    style: dict[str, Any] = {"bbox_to_anchor": (1.0, 1.0), "fontsize": 8, "borderaxespad": 0.2}
    lined, names = [line for line, _ in named], [name for _, name in named]
    axes.legend(lined, names, loc="upper left", frameon=False, **style)


def _inlined(svg: str, title: str, name: str) -> str:
    """The element alone: as wide as its place, its ids its own, its colours the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(r"\n\s*", "\n", svg).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
