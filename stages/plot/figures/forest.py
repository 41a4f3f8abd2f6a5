"""Paired differences and losses with their intervals, and each replicate's own value."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abctune.study.comparison import Comparison, Difference
from abctune.study.inputs import OVERALL
from abctune.study.verdicts import DECIDED, Verdict
from stages.plot.colors import BAND, INK
from stages.plot.figures.style import Style, Styles, drawn, name_rows, panels


def forest(comparison: Comparison, styles: Styles) -> Figure:
    """A panel per set, a row per pair. Filled: better or worse; the grey band is the margin."""
    pairs = comparison.pairs
    figure, axes = panels([0.27 * len(pairs) + 0.1] * len(comparison.sets), sharex=True)
    for axis, on in zip(axes, comparison.sets, strict=True):
        axis.set_title(f"{on.name}  (n = {on.n:,})")
        axis.axvspan(-comparison.margin, comparison.margin, color=BAND, linewidth=0, zorder=0)
        for row, (model, reference) in enumerate(pairs):
            forest_row(axis, row, comparison.difference(model, reference, on.name), styles[model])
        axis.axvline(0, color=INK, linewidth=0.8)
        name_rows(axis, [f"{model} − {reference}" for model, reference in pairs])
        axis.grid(axis="x")
    axes[-1].set_xlabel(
        "← first model better · second model better →\ndifference in loss (nats per token), 95 % interval"
    )
    return figure


def forest_row(axis: Axes, row: int, difference: Difference, style: Style) -> None:
    """The interval, the value in it, and what each replicate alone would say."""
    interval_line(axis, row, difference.low, difference.high, style)
    replicate_points(axis, row, difference.by_replicate, style)
    face = style.color if difference.outcome in DECIDED else "white"
    axis.plot(
        drawn(difference.value),
        row,
        style.marker,
        color=style.color,
        markerfacecolor=face,
        markersize=6,
        markeredgewidth=1.4,
        zorder=4,
    )


def interval_line(axis: Axes, row: int, low: float | None, high: float | None, style: Style) -> None:
    """Nothing where there is no interval."""
    if low is not None and high is not None:
        ends = [drawn(low), drawn(high)]
        axis.plot(ends, [row, row], color=style.color, linestyle=style.dash, linewidth=1.8)


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
    overall = [v for v in verdicts if v.difference.on.name == OVERALL]
    parts = [f"{v.difference.model} compared with {v.difference.reference} {v.short}" for v in overall]
    return f"Forest plot of all {len(verdicts)} paired differences with 95 % intervals; the table below it holds the numbers. Overall: {'; '.join(parts)}."


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
