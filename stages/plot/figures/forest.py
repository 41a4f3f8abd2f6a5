"""Paired differences and losses with their intervals, and each replicate's own value.

Differences of the size of the margin are too small to be seen next to what training gains, so they are drawn twice: on the
left all of them on one scale, on the right what lies near 0, where one sees whether an interval is within the margin.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import markers
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abctune.core.records import LOSS
from abctune.study.comparison import Comparison, Difference
from abctune.study.inputs import OVERALL
from abctune.study.verdicts import DECIDED, Verdict
from abctune.study.wording import number
from stages.plot.colors import BAND, INK
from stages.plot.figures.style import Style, Styles, drawn, name_rows, panel_rows, panels

NEAR = 3  # the panels on the right end at so many margins from 0
ONCE = "*"  # marks the verdict on two adapters
SMALL = 7.5  # of text next to a row, in points


def forest(comparison: Comparison, styles: Styles) -> Figure:
    """Two panels per set, all and near 0; a row per pair. Filled: better or worse; the grey band is the margin."""
    pairs, margin = comparison.pairs, comparison.margin
    heights = [0.27 * len(pairs) + 0.1] * len(comparison.sets)
    figure, rows = panel_rows(heights, [1.15, 1], sharex="col", sharey="row")
    for (whole, near), on in zip(rows, comparison.sets, strict=True):
        whole.set_title(f"{on.name}  (n = {on.n:,})")
        name_rows(whole, [f"{model} − {reference}" for model, reference in pairs])
        near.tick_params(axis="y", length=0)
        near.spines["left"].set_visible(False)
        for axis in (whole, near):
            axis.axvspan(-margin, margin, color=BAND, linewidth=0, zorder=0)
            axis.axvline(0, color=INK, linewidth=0.8)
            axis.grid(axis="x")
        for row, (model, reference) in enumerate(pairs):
            difference = comparison.difference(model, reference, on.name)
            forest_row(whole, row, difference, styles[model])
            near_row(near, row, difference, styles[model], NEAR * margin)
            outcome_word(near, row, difference)
    whole, near = rows[-1]
    near.set_xlim(-NEAR * margin, NEAR * margin)
    near.set_xticks([-2 * margin, 0, 2 * margin])
    whole.set_xlabel("difference in loss\n(nats per token)")
    near.set_xlabel(f"the same near 0\n(grey: within ±{margin:g})")
    once = "" if comparison.replicated else f"\n{ONCE} one run: nothing is said about the recipes"
    figure.supxlabel(f"← first model better · second model better →{once}", fontsize=9)
    return figure


def outcome_word(axis: Axes, row: int, difference: Difference) -> None:
    """The verdict after correction, to the right of the row."""
    word = difference.outcome if difference.about == "recipes" else f"{difference.outcome} {ONCE}"
    axis.annotate(word, (1.07, row), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL)


def forest_row(axis: Axes, row: int, difference: Difference, style: Style) -> None:
    """The interval, the value in it, and what each replicate alone would say."""
    interval_line(axis, row, difference.low, difference.high, style)
    replicate_points(axis, row, difference.by_replicate, style)
    value_point(axis, row, difference, style)


def value_point(axis: Axes, row: int, difference: Difference, style: Style) -> None:
    """Filled where better or worse is shown."""
    axis.plot(
        drawn(difference.value),
        row,
        style.marker,
        color=style.color,
        markerfacecolor=style.color if difference.outcome in DECIDED else "white",
        markersize=5,
        markeredgewidth=1.4,
        zorder=4,
    )


def near_row(axis: Axes, row: int, difference: Difference, style: Style, limit: float) -> None:
    """The row as far as it is within `limit` of 0. An arrow where it goes on; the value, where none of it is."""
    low = difference.value if difference.low is None else difference.low
    high = difference.value if difference.high is None else difference.high
    if high < -limit or low > limit:
        side = -1 if high < 0 else 1
        arrow(axis, row, side, limit, style)
        axis.annotate(
            number(drawn(difference.value), 2),
            (side * limit, row),
            (-side * 8, 0),
            textcoords="offset points",
            ha="left" if side < 0 else "right",
            va="center",
            fontsize=SMALL,
        )
        return
    interval_line(axis, row, max(low, -limit), min(high, limit), style)
    for side, end in ((-1, low), (1, high)):
        if abs(end) > limit:
            arrow(axis, row, side, limit, style)
    replicate_points(axis, row, [value for value in difference.by_replicate if abs(value) <= limit], style)
    if abs(difference.value) <= limit:
        value_point(axis, row, difference, style)


def arrow(axis: Axes, row: int, side: int, limit: float, style: Style) -> None:
    """At the panel's edge: the interval is, or goes on, beyond it."""
    tip = markers.CARETLEFTBASE if side < 0 else markers.CARETRIGHTBASE
    axis.plot(side * limit, row, marker=tip, color=style.color, markersize=6, clip_on=False, zorder=4)


def interval_line(axis: Axes, row: int, low: float | None, high: float | None, style: Style) -> None:
    """Nothing where there is no interval."""
    if low is not None and high is not None:
        ends = [drawn(low), drawn(high)]
        # Solid for every model: in a dashed line a gap looks like an end.
        axis.plot(ends, [row, row], color=style.color, linewidth=1.8)


def replicate_points(axis: Axes, row: int, values: Sequence[float], style: Style) -> None:
    """Small dots below the line; one replicate needs none."""
    if len(values) > 1:
        axis.plot(
            [drawn(value) for value in values],
            [row + 0.27] * len(values),
            "o",
            color=style.color,
            markersize=2.6,
            alpha=0.7,
            markeredgewidth=0,
        )


def forest_alt(verdicts: list[Verdict]) -> str:
    """The forest plot in words."""
    drawn_here = [v for v in verdicts if v.difference.metric.name == LOSS.name]
    overall = [v for v in drawn_here if v.difference.on.name == OVERALL]
    parts = [f"{v.difference.model} compared with {v.difference.reference} {v.short}" for v in overall]
    return (
        f"Forest plot of all {len(drawn_here)} paired differences in loss with 95 % intervals, next to it those near 0 enlarged; "
        f"the table below it holds the numbers. Overall: {'; '.join(parts)}."
    )


def test_loss(comparison: Comparison, styles: Styles) -> Figure:
    """A panel per set, a row per model, each panel with its own scale."""
    figure, axes = panels([0.27 * len(styles) + 0.1] * len(comparison.sets))
    for axis, on in zip(axes, comparison.sets, strict=True):
        axis.set_title(f"{on.name}  (n = {on.n:,})")
        for row, (model, style) in enumerate(styles.items()):
            loss = comparison.value(model, on.name)
            interval_line(axis, row, loss.low, loss.high, style)
            replicate_points(axis, row, loss.by_replicate, style)
            axis.plot(drawn(loss.value), row, style.marker, color=style.color, markersize=6)
            axis.annotate(
                f"{loss.value:.3f}",
                (drawn(loss.value), row),
                (0, 4.5),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
        name_rows(axis, list(styles), top=0.85)
        axis.grid(axis="x")
        axis.margins(x=0.08)
    axes[-1].set_xlabel("test loss (nats per token), 95 % interval")
    return figure


def test_loss_alt(comparison: Comparison) -> str:
    """The losses in words."""
    loss = comparison.metrics[0].name
    parts = [f"{v.model} {v.on.name} {v.value:.3f}" for v in comparison.values if v.metric.name == loss]
    return "Test loss in nats per token of every model, with 95 % intervals: " + ", ".join(parts) + "."
