"""How all figures look, and how one becomes an SVG file that equal results leave byte for byte as it was.

Colors are those of stages/plot/colors.py; styles and direct labels carry the same information without color. One color,
marker and line style per model in all figures; base is black.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from abctune.core.params import BASE
from stages.plot.colors import BLACK, COLORS, DARK, FAINT, INK, MUTED

WIDTH = 4.8  # inches: a phone shows it at four fifths of its size, so the text stays legible
DASHES = ((0, ()), (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)), (0, (3, 1)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
FONT = "DejaVu Sans"  # comes with matplotlib, which measures with it
SIMILAR_FONTS = f"'{FONT}', Verdana, Helvetica, Arial, sans-serif"  # for who looks on a machine without it
RC: dict[str, Any] = {  # how all figures look
    "svg.hashsalt": "abctune",  # otherwise element ids are random, and the file new every time
    # Text as text: a fifth of the size of outlines, and a changed number is one changed line in a pull request.
    "svg.fonttype": "none",
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}
STEPS = 200  # of a curve over its panel's height, which has about as many pixels
DRAWN_DIGITS = 3  # decimals of a drawn loss, in nats: a change below that redraws nothing
TAG = re.compile(r"<[^>]*>")
STYLE_END = "</style>"  # of matplotlib's one style sheet per figure
LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


@dataclass(frozen=True)
class Style:
    """A model's look in every figure."""

    color: str
    dash: Any  # as matplotlib takes it
    marker: str

    @property
    def dark(self) -> str:
        """The color on a dark page."""
        return DARK[self.color]


Styles = dict[str, Style]


@dataclass(frozen=True)
class Chart:
    """A figure as SVG text, and in words for those who cannot see it."""

    svg: str
    title: str
    alt: str


def styles_of(variants: Iterable[str]) -> Styles:
    """Fixed by the order in params.yaml, so a variant added later changes no other's look."""
    styles = {BASE: Style(BLACK, DASHES[0], "o")}
    for i, name in enumerate(variants):
        # Five dashes and six colors: no two of the first 30 variants look alike.
        styles[name] = Style(COLORS[i % len(COLORS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
    return styles


def svg_of(figure: Figure) -> str:
    """The figure's SVG, coordinates to a hundredth of a point, without date and program."""
    file = io.StringIO()
    canvas = FigureCanvasSVG(figure)
    # `savefig` would draw the whole figure once only to arrange it: a sixth of the stage's time.
    layout = figure.get_layout_engine()
    assert layout is not None  # `panels` sets one
    layout.execute(figure)
    figure.set_layout_engine("none")
    canvas.print_svg(file, metadata={"Date": None, "Creator": None})
    text = file.getvalue().replace(f"'{FONT}'", SIMILAR_FONTS)
    text = text.replace(STYLE_END, f"\n{dark_rules()}{STYLE_END}", 1)
    return TAG.sub(lambda tag: LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", tag[0]), text)


def dark_rules() -> str:
    """CSS by which a figure follows the browser's dark scheme; programs that know no such scheme draw it as on paper.

    matplotlib writes every color into its element's own `style`, which only `!important` overrules.
    """
    rules = [
        f'[style*="{part}: {light.lower()}"] {{{part}: {dark} !important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    ]
    # A shape without a fill is black.
    rules.append(f'[style*="stroke: {BLACK}"]:not([style*="fill"]) {{fill: {DARK[BLACK]}}}')
    return "@media (prefers-color-scheme: dark) {\n" + "\n".join(rules) + "\n}\n"


def panels(heights: list[float], **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Panels above one another, `heights` inches each, plus room for titles and labels."""
    figure, axes = panel_rows(heights, [1], **kwargs)
    return figure, [axis for (axis,) in axes]


def panel_rows(heights: list[float], widths: list[float], **kwargs: Any) -> tuple[Figure, list[list[Axes]]]:
    """The same with several panels in a row, whose widths are in these proportions."""
    layout = ConstrainedLayoutEngine(h_pad=0.06, hspace=0.04)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.55 * len(heights)), layout=layout)
    axes = figure.subplots(
        len(heights), len(widths), squeeze=False, height_ratios=heights, width_ratios=widths, **kwargs
    )
    return figure, [list(row) for row in axes]


def drawn(value: float) -> float:
    """A loss as drawn: rounded, so that the last digits of an arithmetic do not redraw a figure."""
    return round(value, DRAWN_DIGITS)


def drawn_step(span: float) -> float:
    """The step of 1, 2 or 5 times a power of ten that curves over a span are rounded to: at most a 200th of it."""
    if not span > 0:
        return 10.0**-DRAWN_DIGITS
    power = 10.0 ** math.floor(math.log10(span / STEPS))
    return max((factor * power for factor in (2, 5) if factor * power <= span / STEPS), default=power)


def rounded_to(step: float, values: pd.Series) -> pd.Series:
    """The values as multiples of the step; as they are where it is 0."""
    return (values / step).round() * step if step else values


def name_rows(axis: Axes, names: list[str], top: float = 0.6) -> None:
    """One row per name, from the top, without ticks."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -top)
    axis.tick_params(axis="y", length=0)
