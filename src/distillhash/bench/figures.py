"""Figures: pure functions from plain numbers to a :class:`Drawing`, which gives an ``<svg>`` element for a page, or a PNG file.

Colours are CSS variables with a fallback (``var(--figure-ink, #3a4048)``), so that a page may change them for a dark background.
Nothing is painted behind the axes, and text takes the page's font. The series colours follow Okabe and Ito
(https://jfly.uni-koeln.de/color/), told apart by all common kinds of colour vision; past the seventh series they come again dashed.
The same data give the same bytes. Matplotlib is imported on first use, and its global state is left as it was.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in the fallback colour, then rewritten to the CSS variable of that name. ``figure.mplstyle`` uses the same colours.
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
_REFERENCE: dict[str, Any] = {"color": COLOURS["muted"], "linewidth": 1.1, "linestyle": (0, (3, 3))}
# A note along a horizontal line: x as a share of the axes, y as a value, moved by an offset in points.
_NOTE: dict[str, Any] = {"xytext": (4, 4), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}


def load_matplotlib(folder: Path) -> None:
    """Import matplotlib. A user without a home that can be written has no place for its list of fonts: it lies in ``folder`` meanwhile."""
    with contextlib.suppress(RuntimeError):  # no home
        if os.access(Path.home(), os.W_OK):
            return
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        return
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=folder) as place:
        os.environ["MPLCONFIGDIR"] = place
        try:
            import matplotlib.font_manager  # noqa: F401  # it lists the fonts when it is imported
        finally:
            del os.environ["MPLCONFIGDIR"]


def _style() -> AbstractContextManager[None]:
    """The settings of ``figure.mplstyle``, for as long as it lasts."""
    from matplotlib.style import context

    return context("distillhash.bench.figure")


@dataclass(frozen=True)
class Drawing:
    """A finished figure, and what it shows in words."""

    figure: Figure
    alt: str

    def svg(self) -> str:
        """An ``<svg>`` element for a page: no prolog, colours as variables, ids only where used, and unique."""
        buffer = io.StringIO()
        with _style():
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        document = buffer.getvalue()
        svg = document[document.index("<svg") :].strip()
        # A style element would reach the whole page, and the list of fonts is repeated at every label.
        svg = re.sub(r"<(metadata|style).*?</\1>\s*", "", svg, flags=re.DOTALL)
        svg = re.sub(r" font-family: [^;\"]+;", "", svg)
        for name, colour in COLOURS.items():
            svg = svg.replace(f": {colour}", f": var(--figure-{name}, {colour})")
        used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
        prefix = re.sub(r"[^a-z]+", "-", self.alt.lower())[:24]
        svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", svg)
        svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
        attributes = f'role="img" aria-label="{escape(self.alt)}" font-family="sans-serif" stroke-linejoin="round"'
        return svg.replace("<svg ", f"<svg {attributes} ", 1)

    def svg_file(self) -> bytes:
        """The same as a file, which shows on white."""
        return f'<?xml version="1.0" encoding="utf-8"?>\n{self.svg()}\n'.encode()

    def png(self) -> bytes:
        """A PNG file on white, 200 dots an inch."""
        buffer = io.BytesIO()
        with _style():
            self.figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def _drawing(alt: str) -> Iterator[tuple[Drawing, Axes]]:
    """A new drawing and its axes; on leaving, a legend where there are several series."""
    from matplotlib.figure import Figure

    with _style():
        figure = Figure()
        axes = figure.add_subplot()
        yield Drawing(figure, alt), axes
        for line in axes.lines:
            line.set_clip_on(False)
        labels = axes.get_legend_handles_labels()[1]
        if len(labels) > 1:
            longest = max(map(len, labels))
            columns = 1 if longest > 28 else 2 if longest > 16 else 3
            figure.legend(loc="outside upper left", ncols=columns)
            width, height = figure.get_size_inches()
            figure.set_size_inches(width, height + 0.2 * -(-len(labels) // columns))


def pr_by_radius(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Drawing:
    """Precision against recall of Hamming lookup, one point a radius; ``curves`` is label -> ``pr_radius`` of ``evaluate_codes``.

    Leading radii that find nothing are not drawn. One curve alone has radii beside it.
    """
    with _drawing("Precision against recall of Hamming lookup, one point for each radius") as (drawing, axes):
        for label, curve in curves.items():
            recall, precision = np.asarray(curve["recall"]), np.asarray(curve["precision"])
            first = int(np.argmax(recall > 0))
            axes.plot(recall[first:], precision[first:], label=label, marker="o", markersize=3.2)
            last = (-1.0, -1.0)
            for radius, here in enumerate(zip(recall, precision, strict=True)) if len(curves) == 1 else ():
                # About five radii where the curve moves, never two close together.
                if radius >= first and math.dist(here, last) > 0.17 and here[0] < 0.999:
                    axes.annotate(f"r = {radius}", here, (5, 5), textcoords="offset points")
                    last = here
        axes.set(xlabel="Recall within the radius", ylabel="Precision within the radius")
        axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.04))
    return drawing


def topn_precision(curves: Mapping[str, Mapping[str, Sequence[float]]], random: float | None = None) -> Drawing:
    """Precision of the first N; ``curves`` is label -> ``topn`` of ``evaluate_codes``, ``random`` that of a random ranking."""
    with _drawing("Precision of the first N results against N") as (drawing, axes):
        for label, curve in curves.items():
            axes.plot(curve["n"], curve["precision"], label=label)
        if random is not None:
            axes.axhline(random, **_REFERENCE)
            axes.annotate("random order", (0, random), **_NOTE)  # on the left, where the curves are high
        axes.set(xlabel="Results looked at, N", ylabel="Precision of the first N", ylim=(0, 1.04))
        axes.set_xlim(left=0)
    return drawing


def training_loss(losses: Mapping[str, Sequence[float]], *, iterations: int = 0) -> Drawing:
    """Loss after each epoch, or every so many ``iterations``; a logarithmic axis where positive values span more than a factor of 50."""
    unit, step = ("iteration", iterations) if iterations else ("epoch", 1)
    with _drawing(f"Training loss by {unit}") as (drawing, axes):
        for label, values in losses.items():
            marker = "o" if len(values) == 1 else None
            axes.plot(step * np.arange(1, len(values) + 1), values, label=label, marker=marker)
        longest = step * max(len(values) for values in losses.values())
        axes.set(xlabel=unit.capitalize(), ylabel="Loss", xlim=(step - 0.01 * longest, max(longest, 2)))
        axes.locator_params("x", integer=True)
        flat = np.concatenate([np.asarray(values, float) for values in losses.values()])
        if flat.min() > 0 and flat.max() > 50 * flat.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
    return drawing


def bit_balance(balance: Sequence[float]) -> Drawing:
    """Mean sign of every bit, sorted, with the level at which 75 % of the images agree as a guide; ``balance`` is K values in [-1, 1]."""
    with _drawing("Mean sign of every bit") as (drawing, axes):
        values = np.sort(np.asarray(balance, float))
        axes.axhline(0, color=COLOURS["ink"], linewidth=0.8)
        for guide in (-0.5, 0.5):
            axes.axhline(guide, **_REFERENCE)
        axes.annotate("75% of the images are +1", (0, 0.5), **_NOTE)
        axes.bar(np.arange(1, len(values) + 1), values, width=0.72, color=COLOURS["1"], linewidth=0)
        axes.set(xlabel="Bits, in order of their balance", ylabel="Mean sign", xlim=(0, len(values) + 1), ylim=(-1, 1))
        axes.set_yticks([-1, -0.5, 0, 0.5, 1])
        axes.locator_params("x", integer=True)
    return drawing


def bit_correlation(correlation: Sequence[Sequence[float]]) -> Drawing:
    """Correlation of every pair of bits, K x K: blue positive, orange negative. The scale ends at the largest value off the diagonal."""
    from matplotlib.colors import to_rgb

    values = np.array(correlation, float)
    np.fill_diagonal(values, 0.0)
    limit = float(np.abs(values).max()) or 1.0

    with _drawing(f"Correlation of every pair of bits, from -{limit:.2f} to +{limit:.2f}") as (drawing, axes):

        def paint(array: NDArray[np.float64]) -> NDArray[np.float64]:
            # Strength is opacity, not lightness: zero is then the background, whichever colour that is.
            hue = np.where(array[..., None] >= 0, to_rgb(COLOURS["6"]), to_rgb(COLOURS["2"]))
            return np.concatenate([hue, np.abs(array)[..., None]], axis=-1)

        k = len(values)
        drawing.figure.set_size_inches(4.7, 3.6)
        axes.imshow(paint(values / limit), interpolation="none", extent=(0.5, k + 0.5, k + 0.5, 0.5))
        axes.set(xlabel="Bit", ylabel="Bit")
        axes.grid(visible=False)
        axes.locator_params(integer=True, nbins=6)
        scale = axes.inset_axes((1.06, 0.0, 0.045, 1.0))
        strip = paint(np.linspace(1, -1, 64)[:, None])
        scale.imshow(strip, interpolation="none", extent=(0, 1, -limit, limit), aspect="auto")
        scale.set_xticks([])
        scale.yaxis.tick_right()
        scale.set_yticks([-limit, 0, limit], [f"-{limit:.2f}", "0", f"+{limit:.2f}"])
        scale.grid(visible=False)
        for part in (axes, scale):
            part.spines[:].set(visible=True, color=COLOURS["faint"])
    return drawing


def neighbour_recall(recall: Mapping[str, Any]) -> Drawing:
    """Share of the nearest neighbours by features found among the first results; of :func:`distillhash.metrics.neighbour_recall`."""
    with _drawing("Share of the feature neighbours found against the number of results looked at") as (drawing, axes):
        curve = recall["curve"]
        for k in recall["ks"]:
            axes.plot(curve["depth"], curve[f"recall{k}"], label=f"{k} nearest")
        axes.plot(curve["depth"], curve["random"], **_REFERENCE)
        end = curve["depth"][-1], curve["random"][-1]
        axes.annotate("random order", end, (-6, 7), textcoords="offset points", ha="right")
        axes.set(xlabel="Results looked at (logarithmic)", ylabel="Feature neighbours found", ylim=(0, 1.04))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
    return drawing


def method_comparison(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    metric: str,
    *,
    baseline: tuple[str, float | None] | None = None,
) -> Drawing:
    """A metric against code length; ``series`` is method -> points ``(n_bits, value, low, high)``, the last two a band over seeds.

    ``baseline`` is the name and value of a reference line, such as the float features; no value, no line.
    """
    with _drawing(f"{metric} against code length") as (drawing, axes):
        for label, points in series.items():
            bits, value, low, high = np.array(sorted(points)).T
            (line,) = axes.plot(bits, value, label=label, marker="o", markersize=4)
            axes.fill_between(bits, low, high, color=line.get_color(), alpha=0.16, linewidth=0)
        if baseline is not None and baseline[1] is not None:
            axes.axhline(baseline[1], label=baseline[0], **_REFERENCE)
        ticks = sorted({point[0] for points in series.values() for point in points})
        axes.set(xlabel="Code length, bits (logarithmic)", ylabel=metric)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
    return drawing


def sensitivity(series: Mapping[str, Sequence[tuple[float, float, float, float]]], option: str) -> Drawing:
    """MAP against the values of an option; ``series`` is label -> points ``(value, mean, low, high)``. MAP does not begin at 0."""
    with _drawing(f"MAP against {option}") as (drawing, axes):
        for label, points in series.items():
            values, mean, low, high = np.array(sorted(points)).T
            (line,) = axes.plot(values, mean, label=label, marker="o", markersize=4)
            axes.fill_between(values, low, high, color=line.get_color(), alpha=0.16, linewidth=0)
        axes.set(xlabel=option, ylabel="MAP")
        axes.set_xticks(sorted({point[0] for points in series.values() for point in points}))
    return drawing


def bytes_and_recall(
    series: Mapping[str, Sequence[tuple[float, float]]], styles: Mapping[str, tuple[str, str]], metric: str
) -> Drawing:
    """A metric against bytes a vector; ``series`` is label -> points ``(bytes, value)``, ``styles`` its colour of :data:`COLOURS` and line.

    Labels stand at the right end of their line.
    """
    with _drawing(f"{metric} against bytes a vector") as (drawing, axes):
        drawing.figure.set_size_inches(5.6, 4.2)
        ends = []
        for label, points in series.items():
            x, y = np.array(sorted(points)).T
            colour, line = COLOURS[styles[label][0]], styles[label][1]
            axes.plot(x, y, color=colour, linestyle=line, marker="o", markersize=3.6)
            ends.append((float(y[-1]), float(x[-1]), label, colour))
        sizes = sorted({size for points in series.values() for size, _ in points})
        bottom = max(0.0, math.floor(10 * min(y for points in series.values() for _, y in points)) / 10 - 0.05)
        gap, heights = 0.047 * (1.03 - bottom), list[float]()
        for y, *_ in sorted(ends):  # from below: at the end of the line, or a line of text above the label before
            heights.append(max(y, heights[-1] + gap) if heights else y)
        for place in reversed(range(len(heights))):  # from above: none passes the top
            heights[place] = min([heights[place], *(height - gap for height in heights[place + 1 : place + 2]), 1.0])
        right = max(sizes) * 1.25
        for height, (y, x, label, colour) in zip(heights, sorted(ends), strict=True):
            axes.plot([x, right], [y, height], color=colour, linewidth=0.6, linestyle=(0, (1, 2)))
            axes.annotate(
                label,
                (right, height),
                (3, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                annotation_clip=False,
            )
        ticks = [2**power for power in range(14) if min(sizes) <= 2**power <= max(sizes)]
        ticks = ticks[:: 1 + len(ticks) // 7]
        axes.set(xlabel="Bytes a vector (logarithmic)", ylabel=metric, ylim=(bottom, 1.03))
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(sizes) / 1.1, right)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    return drawing
