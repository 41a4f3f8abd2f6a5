"""The report's figures. One colour, marker and line style per model in all of them; base is black.

Colours are Okabe & Ito's (2008), told apart by colour-blind readers; styles and direct labels carry the same
information without colour. Text is drawn as paths, so a figure looks the same on every machine.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abctune.core.params import BASE
from abctune.study.comparison import Comparison, Difference
from abctune.study.inputs import CURVES, OVERALL, Study
from abctune.study.summary import peak_gib, train_seconds
from abctune.study.verdicts import Verdict

WIDTH = 4.8  # inches: a phone shows it at four fifths of its size, so the text stays legible
INK, MUTED, FAINT = "#1a1a1a", "#6b6b6b", "#dddddd"
# Okabe-Ito, the darkest first: three variants get the three that read best on white. Yellow is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ((0, ()), (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)), (0, (3, 1)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
RC = {
    "svg.hashsalt": "abctune",  # otherwise element ids are random, and the file new every time
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib
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


@dataclass(frozen=True)
class Style:
    colour: str
    dash: Any
    marker: str


Styles = dict[str, Style]


def styles_of(variants: Iterable[str]) -> Styles:
    """Fixed by the order in params.yaml, so a variant added later changes no other's look."""
    styles = {BASE: Style("#000000", DASHES[0], "o")}
    for i, name in enumerate(variants):
        # Five dashes against six colours: no two of the first 30 variants look alike.
        styles[name] = Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
    return styles


@dataclass(frozen=True)
class Chart:
    """A figure as SVG text, and in words for who cannot see it."""

    svg: str
    title: str
    alt: str


def all_charts(study: Study, comparison: Comparison, verdicts: list[Verdict]) -> dict[str, Chart]:
    styles = styles_of(study.trained)
    drawings: dict[str, tuple[Callable[[], Figure], str, str]] = {
        "forest": (
            lambda: forest(comparison, verdicts, styles),
            "Paired differences",
            forest_alt(verdicts),
        ),
        "test_loss": (lambda: test_loss(comparison, styles), "Test loss", test_loss_alt(comparison)),
        "curves": (lambda: curves(study, styles), "Training curves", curves_alt(study)),
        "resources": (lambda: resources(study, styles), "Time, memory, throughput", resources_alt(study)),
    }
    if any(trained.formatted for trained in study.trained.values()):
        drawings["lengths"] = (lambda: lengths(study, styles), "Conversation lengths", lengths_alt(study))
    with mpl.rc_context(RC):
        return {name: Chart(svg_of(draw()), title, alt) for name, (draw, title, alt) in drawings.items()}


def svg_of(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def panels(heights: list[float], **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Panels above one another, `heights` inches each, plus room for titles and labels."""
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.55 * len(heights)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06, hspace=0.04)
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights, **kwargs)
    return figure, list(axes[:, 0])


def forest(comparison: Comparison, verdicts: list[Verdict], styles: Styles) -> Figure:
    """A panel per set, a row per pair. Filled: shown after Holm's correction; the grey bar is too small to show."""
    pairs = comparison.pairs
    shown = {v.difference for v in verdicts if v.outcome != "not shown"}
    figure, axes = panels([0.25 * len(pairs) + 0.1] * len(comparison.sets), sharex=True)
    for axis, on in zip(axes, comparison.sets, strict=True):
        axis.set_title(f"{on.name}  (n = {on.n:,})")
        for row, (model, reference) in enumerate(pairs):
            difference = comparison.difference(model, reference, on.name)
            forest_row(axis, row, difference, styles[model], filled=difference in shown)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_yticks(range(len(pairs)), [f"{model} − {reference}" for model, reference in pairs])
        axis.set_ylim(len(pairs) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
    axes[-1].set_xlabel(
        "← first model better      second model better →\ndifference in loss (nats per token), 95 % interval"
    )
    return figure


def forest_alt(verdicts: list[Verdict]) -> str:
    overall = [v for v in verdicts if v.difference.on.name == OVERALL]
    parts = [f"{v.difference.model} beside {v.difference.reference} {v.short}" for v in overall]
    return f"Forest plot of all {len(verdicts)} paired differences with 95 % intervals; the table below it holds the numbers. Overall: {'; '.join(parts)}."


def forest_row(axis: Axes, row: int, difference: Difference, style: Style, filled: bool) -> None:
    if difference.detectable:
        axis.barh(
            row,
            2 * difference.detectable,
            left=-difference.detectable,
            height=0.62,
            color="#ececec",
            zorder=0,
        )
    if difference.low is not None and difference.high is not None:
        axis.plot(
            [difference.low, difference.high],
            [row, row],
            color=style.colour,
            linestyle=style.dash,
            linewidth=1.8,
        )
    face = style.colour if filled else "white"
    axis.plot(
        difference.value,
        row,
        style.marker,
        color=style.colour,
        markerfacecolor=face,
        markersize=6,
        markeredgewidth=1.4,
    )


def test_loss(comparison: Comparison, styles: Styles) -> Figure:
    figure, axes = panels([0.24 * len(styles) + 0.1] * len(comparison.sets))
    for axis, on in zip(axes, comparison.sets, strict=True):
        axis.set_title(f"{on.name}  (n = {on.n:,})")
        for row, (model, style) in enumerate(styles.items()):
            loss = comparison.loss(model, on.name)
            if loss.low is not None and loss.high is not None:
                axis.plot(
                    [loss.low, loss.high], [row, row], color=style.colour, linestyle=style.dash, linewidth=1.8
                )
            axis.plot(loss.value, row, style.marker, color=style.colour, markersize=6)
            axis.annotate(
                f"{loss.value:.3f}",
                (loss.value, row),
                (0, 4.5),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
        axis.set_yticks(range(len(styles)), list(styles))
        axis.set_ylim(len(styles) - 0.4, -0.85)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
        axis.margins(x=0.08)
    axes[-1].set_xlabel("test loss (nats per token), 95 % interval")
    return figure


def test_loss_alt(comparison: Comparison) -> str:
    parts = [f"{loss.model} {loss.on.name} {loss.value:.3f}" for loss in comparison.losses]
    return "Test loss in nats per token of every model, with 95 % intervals: " + ", ".join(parts) + "."


def curves(study: Study, styles: Styles) -> Figure:
    """Train loss, validation loss where there is one, and the learning rate below, on one axis of steps."""
    titles = {
        "train_loss": ("train loss", "nats per token"),
        "eval_loss": ("validation loss during training", "nats per token"),
        "learning_rate": ("learning rate", "per step, log scale"),
    }
    names = [name for name in CURVES if any(len(trained.curves[name]) for trained in study.trained.values())]
    figure, axes = panels([1.25 if name == "learning_rate" else 1.75 for name in names], sharex=True)
    for axis, name in zip(axes, names, strict=True):
        ends: dict[str, tuple[float, float]] = {}
        for variant, trained in study.trained.items():
            style, curve = styles[variant], trained.curves[name]
            if name == "learning_rate":
                curve = curve[curve[name] > 0]  # the log of 0, at a linear schedule's first or last step
                axis.set_yscale("log")
            if curve.empty:
                continue
            marker = style.marker if len(curve) <= 12 else ""
            axis.plot(
                curve["step"],
                curve[name],
                color=style.colour,
                linestyle=style.dash,
                linewidth=1.6,
                marker=marker,
                markersize=4,
            )
            ends[variant] = (float(curve["step"].iloc[-1]), float(curve[name].iloc[-1]))
        title, unit = titles[name]
        axis.set_title(title)
        axis.set_ylabel(unit)
        axis.grid(axis="y")
        label_ends(axis, ends, styles)
    axes[-1].set_xlabel("optimizer step")
    return figure


def label_ends(axis: Axes, ends: dict[str, tuple[float, float]], styles: Styles) -> None:
    """Write each curve's name in the right margin, level with its end, pushed apart where they would overlap."""
    if not ends:
        return
    axis.margins(x=0.02)
    low, high = axis.get_ylim()
    scale = axis.transScale.transform
    (_, bottom), (_, top) = scale((1, low)), scale((1, high))
    wanted = {name: (scale((1, y))[1] - bottom) / (top - bottom) for name, (_, y) in ends.items()}
    gap = (
        11
        / 72
        / (axis.get_subplotspec().get_gridspec().get_height_ratios()[axis.get_subplotspec().rowspan.start])
    )
    for name, at in spread(wanted, gap).items():
        style = styles[name]
        x, y = ends[name]
        axis.annotate(
            name,
            (x, y),
            (1.035, at),
            textcoords="axes fraction",
            color=style.colour,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": style.colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )


def spread(wanted: dict[str, float], gap: float) -> dict[str, float]:
    """Positions in wanted order, at least `gap` apart, as near to the wanted ones as pushing up and back down gets."""
    names = sorted(wanted, key=wanted.__getitem__)
    placed = [wanted[name] for name in names]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    excess = max(0.0, placed[-1] - 1.0) if placed else 0.0
    for i in reversed(range(len(placed))):
        limit = placed[i] - excess if i == len(placed) - 1 else min(placed[i], placed[i + 1] - gap)
        placed[i] = limit
    return dict(zip(names, placed, strict=True))


def curves_alt(study: Study) -> str:
    ends = []
    for variant, trained in study.trained.items():
        curve = trained.curves["train_loss"]
        if len(curve):
            ends.append(
                f"{variant} from {curve['train_loss'].iloc[0]:.2f} to {curve['train_loss'].iloc[-1]:.2f} in {int(curve['step'].iloc[-1])} steps"
            )
    return (
        "Train loss, validation loss and learning rate over optimizer steps. Train loss: "
        + ", ".join(ends)
        + "."
    )


def resources(study: Study, styles: Styles) -> Figure:
    figure, axes = panels([0.24 * len(study.trained) + 0.1] * 3)
    for axis, (title, unit, of, form) in zip(axes, RESOURCES, strict=True):
        values = {variant: of(trained.record["resources"]) for variant, trained in study.trained.items()}
        for row, (variant, value) in enumerate(values.items()):
            axis.barh(row, value, height=0.62, color=styles[variant].colour)
            axis.annotate(form.format(value), (value, row), (4, 0), textcoords="offset points", va="center")
        axis.set_title(title)
        axis.set_xlabel(unit)
        axis.set_yticks(range(len(values)), list(values))
        axis.set_ylim(len(values) - 0.5, -0.5)
        axis.set_xlim(0, (max(values.values()) or 1) * 1.15)
        axis.tick_params(axis="y", length=0)
    return figure


Measure = tuple[str, str, Callable[[dict[str, Any]], float], str]
RESOURCES: tuple[Measure, ...] = (
    ("training time", "seconds", train_seconds, "{:,.0f}"),
    ("peak memory of the process", "GiB", peak_gib, "{:.2f}"),
    ("throughput", "tokens per second, without padding", lambda r: r["tokens_per_second"], "{:,.0f}"),
)


def resources_alt(study: Study) -> str:
    parts = []
    for variant, trained in study.trained.items():
        r = trained.record["resources"]
        parts.append(
            f"{variant} {train_seconds(r):,.0f} s, {peak_gib(r):.2f} GiB, {r['tokens_per_second']:,.0f} tokens per second"
        )
    return "Training time, peak memory and throughput: " + "; ".join(parts) + "."


def lengths(study: Study, styles: Styles) -> Figure:
    """A histogram per variant over one axis; what lies right of the line is cut."""
    formatted = {
        variant: trained.formatted for variant, trained in study.trained.items() if trained.formatted
    }
    figure, axes = panels([0.62] * len(formatted), sharex=True)
    for axis, (variant, data) in zip(axes, formatted.items(), strict=True):
        histogram, limit = data["lengths"]["histogram"], data["lengths"]["max_length"]
        edges, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"])
        share = 100 * counts / max(1, counts.sum())
        axis.bar(edges[:-1], share, np.diff(edges), align="edge", color=styles[variant].colour, linewidth=0)
        axis.axvline(limit, color=INK, linewidth=1.1)
        axis.set_title(variant)
        axis.set_ylabel("% of rows")
        axis.annotate(cut_words(data), (1, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=8)
    axes[-1].set_xlabel("tokens per conversation, before the cut")
    return figure


def cut_words(formatted: dict[str, Any]) -> str:
    counts = formatted["sources"].values()
    kept = sum(source["kept"] for source in counts)
    cut = sum(source["truncated"] for source in counts)
    return f"cut at {formatted['lengths']['max_length']:,}: {cut:,} of {kept:,} ({100 * cut / max(1, kept):.1f} %)"


def lengths_alt(study: Study) -> str:
    parts = [
        f"{variant}: {cut_words(trained.formatted)}"
        for variant, trained in study.trained.items()
        if trained.formatted
    ]
    return "Histogram of conversation lengths in tokens per variant. " + "; ".join(parts) + "."
