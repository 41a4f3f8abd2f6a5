"""What a reader of the results must be warned of, and what they cannot show."""

from __future__ import annotations

from collections.abc import Iterator

from abctune.core.params import BASE
from abctune.study.comparison import Comparison
from abctune.study.coverage import untested
from abctune.study.inputs import Study, Trained
from abctune.study.origins import made_with
from abctune.study.wording import listed
from stages.plot.rows import FULL

FEW_GROUPS = 30  # below this, an interval from rows is itself shaky
MUCH_CUT = 0.05  # share of conversations cut at max_length above which the report warns


def warnings_of(study: Study, comparison: Comparison) -> list[str]:
    """A line for each thing that makes these results weaker than they look."""
    lines = [f"{name}: {line}" for name, run in study.trained.items() for line in training_warnings(run)]
    lines += [*untested(study).values(), *test_set_warnings(comparison)]
    lines += [
        f"{key} differs between variants ({', '.join(f'{v}: {value}' for v, value in by.items())}): times and losses are not from one setting"
        for key, by in made_with(study).items()
        if len(set(map(str, by.values()))) > 1
    ]
    return lines


def training_warnings(trained: Trained) -> Iterator[str]:
    """Of one variant's schedule, data and choice of the adapter."""
    yield from trained.record.schedule.warnings
    yield from trained.mixed.warnings
    kept, steps = trained.record.published_replicate.kept, trained.record.schedule.max_steps
    if kept.step < steps:
        rule = kept.by.replace("_", " ")
        yield (
            f"the published adapter is that of step {kept.step} of {steps} (kept by {rule}): "
            "what later steps learnt is not in its scores"
        )
    if trained.formatted.truncated > MUCH_CUT * trained.formatted.kept:
        cut, of = trained.formatted.truncated, trained.formatted.kept
        yield f"{cut:,} of {of:,} conversations ({100 * cut / of:.0f} %) are longer than max_length and were cut"


def test_set_warnings(comparison: Comparison) -> Iterator[str]:
    """Of sets that are too small."""
    for on in comparison.sets:
        if comparison.value(BASE, on.name).low is None:
            few = f"{on.n:,} conversations in {on.n_groups:,} groups are too few"
            lone = f"{listed(list(on.lone))} has one group of test rows only, which is too few"
            yield f"{on.name}: {lone if on.lone else few} for an interval; give the test subset a larger share"
        elif on.n_groups < FEW_GROUPS:
            yield (
                f"{on.name}: intervals rest on {on.n_groups:,} independent groups only; "
                f"below about {FEW_GROUPS} they tend to be too narrow"
            )


def limits_of(study: Study, comparison: Comparison) -> list[str]:
    """What the numbers cannot show, whatever their values."""
    lines = [
        "A lower loss means that the model finds the held-out replies more likely: their style and wording. It does not mean that its answers are more often correct, useful or safe.",
        runs_limit(comparison),
        "The test rows come from the same sources as the training rows. How a model does on other kinds of questions, only the general text says, and that in loss alone.",
        "The tasks check what a program can: form, counts, words, whether code parses and satisfies a lint rule. Code that does so may still do something else than the code it replaces, and a short list of tasks shows large differences only. One adapter per variant answers them, the published one.",
        "The answers to the fixed prompts are greedy and few. They are there to read, not to count.",
    ]
    if study.params.profile != FULL:
        lines.insert(
            1,
            f"Profile {study.params.profile}: its model and data are stand-ins for the full run's, small enough for this machine. Which variant is better there, these numbers cannot tell.",
        )
    return lines


def runs_limit(comparison: Comparison) -> str:
    """Which sources of chance the intervals cover."""
    if comparison.replicated:
        return (
            "The intervals cover which conversations were held out, and which first weights and order of rows a training had. "
            "They do not cover the draw of the mix: all replicates of a variant train on the same rows."
        )
    once = listed([name for name, k in comparison.replicates.items() if k == 1 and name != BASE])
    return (
        f"Intervals that have to do with {once} cover which conversations were held out. They do not cover the seed: another "
        "training of the same recipe gives another adapter, and may shift these numbers by more than the variants differ."
    )
