"""What a training took, and how long the conversations are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from abctune.core.records import FormatRecord
from abctune.study.inputs import Study, Trained
from stages.plot.colors import INK
from stages.plot.figures.style import Styles, panels

Measure = tuple[str, str, Callable[[Trained], float], str]


def first_seconds(trained: Trained) -> float:
    """Of one replicate's training loop, as the student report's times are: the published one's."""
    return trained.record.published_replicate.resources.train_seconds


def peak_gib(trained: Trained) -> float:
    """The highest over the replicates: memory is per replicate."""
    return max(one.resources.peak_gib for one in trained.record.replicates)


def throughput(trained: Trained) -> float:
    """Tokens per second of the published replicate."""
    return trained.record.published_replicate.resources.tokens_per_second


RESOURCES: tuple[Measure, ...] = (
    ("training time of one replicate", "seconds", first_seconds, "{:,.0f}"),
    ("peak memory of the process", "GiB", peak_gib, "{:.1f}"),
    ("throughput", "tokens per second, without padding", throughput, "{:,.0f}"),
)


def resources(study: Study, styles: Styles) -> Figure:
    """A panel per measure, a bar per variant, drawn to whole units."""
    figure, axes = panels([0.24 * len(study.trained) + 0.1] * len(RESOURCES))
    for axis, (title, unit, of, form) in zip(axes, RESOURCES, strict=True):
        values = {variant: round(of(trained), 1) for variant, trained in study.trained.items()}
        for row, (variant, value) in enumerate(values.items()):
            axis.barh(row, value, height=0.62, color=styles[variant].color)
            axis.annotate(form.format(value), (value, row), (4, 0), textcoords="offset points", va="center")
        axis.set_title(title)
        axis.set_xlabel(unit)
        axis.set_yticks(range(len(values)), list(values))
        axis.set_ylim(len(values) - 0.5, -0.5)
        axis.set_xlim(0, (max(values.values()) or 1) * 1.15)
        axis.tick_params(axis="y", length=0)
    return figure


def resources_alt(study: Study) -> str:
    """The bars in words."""
    parts = [
        f"{variant} {first_seconds(run):,.0f} s, {peak_gib(run):.1f} GiB, {throughput(run):,.0f} tokens per second"
        for variant, run in study.trained.items()
    ]
    return "Training time, peak memory and throughput: " + "; ".join(parts) + "."


def lengths(study: Study, styles: Styles) -> Figure:
    """A histogram per variant over one axis; what lies right of the line is cut."""
    figure, axes = panels([0.62] * len(study.trained), sharex=True)
    for axis, (variant, trained) in zip(axes, study.trained.items(), strict=True):
        found = trained.formatted.lengths
        edges, counts = np.asarray(found.histogram.edges), np.asarray(found.histogram.counts)
        share = 100 * counts / max(1, counts.sum())
        # One outline instead of a rectangle per bar: a tenth of the file.
        axis.stairs(share, edges, fill=True, color=styles[variant].color)
        axis.axvline(found.max_length, color=INK, linewidth=1.1)
        axis.set_title(variant)
        axis.set_ylabel("% of rows")
        note = truncation_note(trained.formatted)
        axis.annotate(note, (1, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=8)
    axes[-1].set_xlabel("tokens per conversation, before the cut")
    return figure


def truncation_note(formatted: FormatRecord) -> str:
    """`cut at 192: 20 of 299 (6.7 %)`."""
    kept, cut = formatted.kept, formatted.truncated
    return f"cut at {formatted.lengths.max_length:,}: {cut:,} of {kept:,} ({100 * cut / max(1, kept):.1f} %)"


def lengths_alt(study: Study) -> str:
    """The histograms in words."""
    parts = [f"{variant}: {truncation_note(run.formatted)}" for variant, run in study.trained.items()]
    return "Histogram of conversation lengths in tokens per variant. " + "; ".join(parts) + "."
