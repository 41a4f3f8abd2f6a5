"""Train loss, validation loss and learning rate over optimizer steps."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abctune.study.inputs import CURVES, Study
from abctune.study.own_loss import are_on_same_rows, own_rows_note
from abctune.study.summary import mean_curve
from stages.plot.colors import MUTED
from stages.plot.figures.style import Style, Styles, drawn_step, panels, rounded_to

TITLES = {
    "train_loss": ("train loss", "nats per token"),
    "eval_loss": ("validation loss during training", "nats per token"),
    "learning_rate": ("learning rate", "per step, log scale"),
}
OWN_ROWS = {  # where the variants have different data
    "train_loss": "train loss, each variant on its own rows",
    "eval_loss": "validation loss, each variant on its own rows",
}
FEW_POINTS = 12  # up to this many, a curve's points are marked
LABEL_POINTS = 11  # height of a label, in points
POINTS_PER_INCH = 72
LEADER = (0, (1, 3))  # from a curve's end to its name


def curves(study: Study, styles: Styles) -> Figure:
    """One panel per curve that was logged. Thick: mean over replicates; thin: each replicate."""
    names = [
        name
        for name in CURVES
        if any(len(curve[name]) for run in study.trained.values() for curve in run.curves.values())
    ]
    heights = [1.25 if name == "learning_rate" else 1.75 for name in names]
    figure, axes = panels(heights, sharex=True)
    for axis, name, height in zip(axes, names, heights, strict=True):
        if name == "learning_rate":
            axis.set_yscale("log")
        ends, step = {}, step_of(study, name)
        for variant in study.trained:
            if end := draw_curve(axis, study, variant, name, styles[variant], step):
                ends[variant] = end
        title, unit = TITLES[name]
        axis.set_title(title if are_on_same_rows(study) else OWN_ROWS.get(name, title))
        axis.set_ylabel(unit)
        axis.grid(axis="y")
        label_ends(axis, ends, styles, height)
    axes[-1].set_xlabel("optimizer step")
    return figure


def step_of(study: Study, name: str) -> float:
    """What a panel's values are rounded to: less than a pixel of its height, and 0 (not at all) for learning rates."""
    values = [curve[name][name] for run in study.trained.values() for curve in run.curves.values()]
    found = [one for one in values if len(one)]
    if name == "learning_rate" or not found:
        return 0.0
    return drawn_step(max(one.max() for one in found) - min(one.min() for one in found))


def draw_curve(
    axis: Axes, study: Study, variant: str, name: str, style: Style, step: float
) -> tuple[float, float] | None:
    """Draw a variant's replicates and their mean; return the mean's last point, None where nothing was logged."""
    replicates, mean = study.trained[variant].curves, mean_curve(study.trained[variant], name)
    if name == "learning_rate":
        mean = mean[mean[name] > 0]  # the log of 0, at a linear schedule's first or last step
    if mean.empty:
        return None
    if len(replicates) > 1 and name != "learning_rate":  # the schedule is the same in all
        for curve in replicates.values():
            ys = rounded_to(step, curve[name][name])
            axis.plot(curve[name]["step"], ys, color=style.color, linewidth=0.6, alpha=0.5)
    ys = rounded_to(step, mean[name])
    axis.plot(
        mean["step"],
        ys,
        color=style.color,
        linestyle=style.dash,
        linewidth=1.6,
        marker=style.marker if len(mean) <= FEW_POINTS else "",
        markersize=4,
    )
    return float(mean["step"].iloc[-1]), float(ys.iloc[-1])


def label_ends(axis: Axes, ends: dict[str, tuple[float, float]], styles: Styles, height: float) -> None:
    """Write each curve's name in the right margin, level with its end, pushed apart where they would overlap.

    The line from the one to the other is grey and dotted: in the curve's color it would look as if the curve went on.

    Args:
        height: of the panel, in inches.
    """
    if not ends:
        return
    axis.margins(x=0.02)
    low, high = axis.get_ylim()
    scale = axis.transScale.transform
    (_, bottom), (_, top) = scale((1, low)), scale((1, high))
    wanted = {name: (scale((1, y))[1] - bottom) / (top - bottom) for name, (_, y) in ends.items()}
    line = {
        "arrowstyle": "-",
        "linewidth": 0.7,
        "linestyle": LEADER,
        "color": MUTED,
        "shrinkA": 1,
        "shrinkB": 4,
    }
    for name, at in spread(wanted, LABEL_POINTS / POINTS_PER_INCH / height).items():
        color = styles[name].color
        axis.annotate(
            name,
            ends[name],
            (1.035, at),
            textcoords="axes fraction",
            color=color,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            arrowprops=line,
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
    """The curves in words."""
    ends = []
    for variant, trained in study.trained.items():
        curve = mean_curve(trained, "train_loss")
        if len(curve):
            first, last = curve["train_loss"].iloc[0], curve["train_loss"].iloc[-1]
            ends.append(f"{variant} from {first:.2f} to {last:.2f} in {int(curve['step'].iloc[-1])} steps")
    text = (
        f"Train loss, validation loss and learning rate over optimizer steps. Train loss: {', '.join(ends)}."
    )
    return f"{text} {own_rows_note(study)}".rstrip()
