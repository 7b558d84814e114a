"""Figures: pure functions from plain numbers to a :class:`Drawing`, which gives an ``<svg>`` element for a page, or a PNG file.

A figure names its colours as CSS variables with a fallback (``var(--figure-ink, #3a4048)``): alone it shows on white,
and a page may set the variables again for a dark background. Nothing is painted behind the axes, and text stays text,
so it takes the page's font. The series colours follow Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart by
all common kinds of colour vision; past the seventh series they come again dashed.

The same data give the same bytes: no dates, and no random ids. Matplotlib is imported on first use, and its global
state is left as it was.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in the fallback colour, then rewritten to the CSS variable of that name.
COLOURS = {
    "ink": "#3a4048",
    "faint": "#d5d9de",
    "muted": "#7a828c",
    "1": "#0072b2",
    "2": "#d55e00",
    "3": "#009e73",
    "4": "#b8568f",
    "5": "#c98a00",
    "6": "#2f9fd6",
    "7": "#5a5fc7",
}
_SERIES = [COLOURS[str(i)] for i in range(1, 8)]
_DASHES: list[Any] = ["-", (0, (4, 2)), (0, (1.5, 1.5))]
_WIDTH, _HEIGHT = 4.7, 3.1  # inches at 100 units an inch; the page scales the drawing to its column

Curve = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Drawing:
    """A finished figure, and what it shows in words."""

    figure: Figure
    alt: str

    def svg(self) -> str:
        """An ``<svg>`` element for inlining into a page; a file of it alone shows on white."""
        buffer = io.StringIO()
        with self._settings():
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return _inline(buffer.getvalue(), self.alt)

    def png(self) -> bytes:
        """A PNG file on white, 200 dots an inch."""
        buffer = io.BytesIO()
        with self._settings():
            self.figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()

    @staticmethod
    def _settings() -> AbstractContextManager[None]:
        from matplotlib import rc_context

        return rc_context({"svg.fonttype": "none", "svg.hashsalt": "distillhash", "font.size": 10})


def pr_by_radius(curves: Mapping[str, Curve]) -> Drawing:
    """Precision against recall of Hamming lookup, one point a radius.

    Args:
        curves: Label -> ``pr_radius`` of :func:`distillhash.metrics.retrieval.evaluate_codes` (``precision`` and ``recall``,
            K + 1 values each). Leading radii that find nothing are not drawn. One curve alone has radii beside it.
    """
    figure, axes = _axes("Recall within the radius", "Precision within the radius")
    for index, (label, curve) in enumerate(curves.items()):
        recall, precision = np.asarray(curve["recall"]), np.asarray(curve["precision"])
        first = int(np.argmax(recall > 0))
        style = _style(index) | {"marker": "o", "markersize": 3.2}
        axes.plot(recall[first:], precision[first:], label=label, **style)
        if len(curves) == 1:
            _write_radii(axes, recall, precision, first)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, 1.04)
    return _drawing(figure, "Precision against recall of Hamming lookup, one point for each radius", curves)


def topn_precision(curves: Mapping[str, Curve], random: float | None = None) -> Drawing:
    """Share of relevant items among the first N of the ranking.

    Args:
        curves: Label -> ``topn`` of :func:`distillhash.metrics.retrieval.evaluate_codes` (``n`` and ``precision``).
        random: Precision of a random ranking, drawn as a reference line.
    """
    figure, axes = _axes("Results looked at, N", "Precision of the first N")
    for index, (label, curve) in enumerate(curves.items()):
        axes.plot(curve["n"], curve["precision"], label=label, **_style(index))
    if random is not None:
        axes.axhline(random, **_reference())
        axes.annotate("random order", (0, random), (4, 4), **_note())  # on the left, where the curves are high
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.04)
    return _drawing(figure, "Precision of the first N results against N", curves)


def training_loss(losses: Mapping[str, Sequence[float]]) -> Drawing:
    """Loss after each epoch; a logarithmic axis where the values are positive and span more than a factor of 50.

    Args:
        losses: Name of the loss (or of the run) -> one value an epoch.
    """
    figure, axes = _axes("Epoch", "Loss")
    for index, (label, values) in enumerate(losses.items()):
        marker = "o" if len(values) == 1 else None
        axes.plot(np.arange(1, len(values) + 1), values, label=label, marker=marker, **_style(index))
    longest = max(len(values) for values in losses.values())
    axes.set_xlim(1 - 0.01 * longest, max(longest, 2))
    axes.locator_params("x", integer=True)
    flat = np.concatenate([np.asarray(values, float) for values in losses.values()])
    if flat.min() > 0 and flat.max() > 50 * flat.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    return _drawing(figure, "Training loss by epoch", losses)


def bit_balance(balance: Sequence[float]) -> Drawing:
    """Mean sign of every bit, sorted, with the level at which 75 % of the images agree as a guide.

    Args:
        balance: K values in [-1, 1].
    """
    figure, axes = _axes("Bits, in order of their balance", "Mean sign")
    values = np.sort(np.asarray(balance, float))
    axes.axhline(0, color=COLOURS["ink"], linewidth=0.8)
    for guide in (-0.5, 0.5):
        axes.axhline(guide, **_reference())
    axes.annotate("75% of the images are +1", (0, 0.5), (4, 4), **_note())
    axes.bar(np.arange(1, len(values) + 1), values, width=0.72, color=_SERIES[0], linewidth=0)
    axes.set_xlim(0, len(values) + 1)
    axes.set_ylim(-1, 1)
    axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    axes.locator_params("x", integer=True)
    return _drawing(figure, "Mean sign of every bit", ())


def bit_correlation(correlation: Sequence[Sequence[float]]) -> Drawing:
    """Correlation of every pair of bits: blue positive, orange negative, clear near zero.

    Args:
        correlation: K x K values in [-1, 1]; the diagonal is left blank, and the scale ends at the largest value off it.
    """
    from matplotlib.colors import to_rgb

    values = np.array(correlation, float)
    np.fill_diagonal(values, 0.0)
    limit = float(np.abs(values).max()) or 1.0
    figure, axes = _axes("Bit", "Bit", size=(_WIDTH, 3.6))

    def paint(array: NDArray[np.float64]) -> NDArray[np.float64]:
        # Strength is opacity, not lightness: zero is then the background, whichever colour that is.
        hue = np.where(array[..., None] >= 0, to_rgb(COLOURS["6"]), to_rgb(COLOURS["2"]))
        return np.concatenate([hue, np.abs(array)[..., None]], axis=-1)

    k = len(values)
    axes.imshow(paint(values / limit), interpolation="none", extent=(0.5, k + 0.5, k + 0.5, 0.5))
    axes.grid(visible=False)
    axes.locator_params(integer=True, nbins=6)
    axes.spines[["top", "right", "left", "bottom"]].set(visible=True, color=COLOURS["faint"])
    scale = axes.inset_axes((1.06, 0.0, 0.045, 1.0))
    scale.imshow(
        paint(np.linspace(1, -1, 64)[:, None]), interpolation="none", extent=(0, 1, -limit, limit), aspect="auto"
    )
    scale.set_facecolor("none")
    scale.set_xticks([])
    scale.yaxis.tick_right()
    scale.set_yticks([-limit, 0, limit], [f"-{limit:.2f}", "0", f"+{limit:.2f}"])
    scale.spines[:].set(color=COLOURS["faint"])
    scale.tick_params(length=0, labelcolor=COLOURS["ink"])
    return _drawing(figure, f"Correlation of every pair of bits, from -{limit:.2f} to +{limit:.2f}", ())


def neighbour_recall(recall: Mapping[str, Any]) -> Drawing:
    """Share of the nearest neighbours by features found among the first results by Hamming distance.

    Args:
        recall: What :func:`distillhash.metrics.neighbour_recall` returns.
    """
    curve, ks = recall["curve"], recall["ks"]
    figure, axes = _axes("Results looked at (logarithmic)", "Feature neighbours found")
    labels = [f"{k} nearest" for k in ks]
    for index, (k, label) in enumerate(zip(ks, labels, strict=True)):
        axes.plot(curve["depth"], curve[f"recall{k}"], label=label, **_style(index))
    axes.plot(curve["depth"], curve["random"], **_reference())
    axes.annotate(
        "random order",
        (curve["depth"][-1], curve["random"][-1]),
        (-6, 7),
        textcoords="offset points",
        color=COLOURS["ink"],
        ha="right",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_ylim(0, 1.04)
    return _drawing(figure, "Share of the feature neighbours found against the number of results looked at", labels)


def method_comparison(
    series: Mapping[str, Sequence[tuple[int, float, float, float]]],
    metric: str,
    *,
    baseline: tuple[str, float] | None = None,
) -> Drawing:
    """A metric against code length, one line a method.

    Args:
        series: Method -> points ``(n_bits, value, low, high)``; low and high span the spread over seeds (equal: no band).
        metric: Name of the y axis.
        baseline: Name and value of a reference line, such as the float features.
    """
    figure, axes = _axes("Code length, bits (logarithmic)", metric)
    lengths = sorted({point[0] for points in series.values() for point in points})
    for index, (label, points) in enumerate(series.items()):
        bits, value, low, high = np.array(sorted(points)).T
        axes.plot(bits, value, label=label, marker="o", markersize=4, **_style(index))
        axes.fill_between(bits, low, high, color=_SERIES[index % len(_SERIES)], alpha=0.16, linewidth=0)
    if baseline is not None:
        axes.axhline(baseline[1], label=baseline[0], **_reference())
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    return _drawing(figure, f"{metric} against code length", [*series, *([baseline[0]] if baseline else [])])


def sensitivity(series: Mapping[str, Sequence[tuple[float, float, float, float]]], metric: str) -> Drawing:
    """A metric against the values of options, on a logarithmic axis that does not start at zero: what is looked at is whether it is flat.

    Args:
        series: Option -> points ``(value, metric, low, high)``; low and high span the spread over seeds.
        metric: Name of the y axis.
    """
    figure, axes = _axes("Value (logarithmic)", metric)
    for index, (label, points) in enumerate(series.items()):
        values, means, low, high = np.array(sorted(points)).T
        axes.plot(values, means, label=label, marker="o", markersize=4, **_style(index))
        axes.fill_between(values, low, high, color=_SERIES[index % len(_SERIES)], alpha=0.16, linewidth=0)
    ticks = sorted({point[0] for points in series.values() for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return _drawing(figure, f"{metric} against the values of options", series)


def _axes(x_label: str, y_label: str, size: tuple[float, float] = (_WIDTH, _HEIGHT)) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    ink, faint = COLOURS["ink"], COLOURS["faint"]
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.set_xlabel(x_label, color=ink, labelpad=6)
    axes.set_ylabel(y_label, color=ink, labelpad=6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["muted"])
    axes.tick_params(length=0, pad=5, labelcolor=ink)
    axes.grid(color=faint, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _style(index: int) -> dict[str, Any]:
    colour, dash = _SERIES[index % len(_SERIES)], _DASHES[index // len(_SERIES) % len(_DASHES)]
    return {"color": colour, "linestyle": dash, "linewidth": 1.9, "clip_on": False}


def _reference() -> dict[str, Any]:
    return {"color": COLOURS["muted"], "linewidth": 1.1, "linestyle": (0, (3, 3))}


def _note() -> dict[str, Any]:
    """A note along a horizontal line: x as a share of the axes, y as a value."""
    across = ("axes fraction", "data")
    return {"xycoords": across, "textcoords": "offset points", "color": COLOURS["ink"]}


def _write_radii(axes: Axes, recall: NDArray[Any], precision: NDArray[Any], first: int) -> None:
    """Write about five radii where the curve moves, never two close together."""
    last = (-1.0, -1.0)
    for radius in range(first, len(recall)):
        here = (float(recall[radius]), float(precision[radius]))
        if math.dist(here, last) > 0.17 and here[0] < 0.999:
            axes.annotate(f"r = {radius}", here, (5, 5), textcoords="offset points", color=COLOURS["ink"])
            last = here


def _drawing(figure: Figure, alt: str, labels: Mapping[str, Any] | Sequence[str]) -> Drawing:
    """Add the legend where there are several series."""
    from matplotlib.text import Text

    if len(labels) > 1:
        longest = max(map(len, labels))
        columns = 1 if longest > 28 else 2 if longest > 16 else 3
        style: dict[str, Any] = {
            "frameon": False,
            "labelcolor": COLOURS["ink"],
            "handlelength": 1.6,
            "borderaxespad": 0,
        }
        figure.legend(loc="outside upper left", ncols=columns, **style)
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.2 * -(-len(labels) // columns))
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)  # a label is a name, even with dollar signs
    return Drawing(figure, alt)


def _inline(document: str, alt: str) -> str:
    """Make an element for a page of an SVG document: no prolog, colours as variables, ids only where used, and unique."""
    svg = document[document.index("<svg") :].strip()
    # A style element would reach the whole page, and the list of fonts is repeated at every label.
    svg = re.sub(r"<(metadata|style).*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]+;", "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(f": {colour}", f": var(--figure-{name}, {colour})")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    prefix = re.sub(r"[^a-z]+", "-", alt.lower())[:24]
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    return svg.replace(
        "<svg ", f'<svg role="img" aria-label="{escape(alt)}" font-family="sans-serif" stroke-linejoin="round" ', 1
    )
