"""Follow a training as it goes: `python -m tools.watch` in a second terminal, or `make watch`.

Reads what training writes anyway (DVCLive's curves, live samples) and redraws it: step and time left, losses of all
variants, the newest samples. It finds the run by itself, whether `dvc repro` or `dvc exp run` works in this folder
or in one of its own (`--queue`, `--temp`: .dvc/tmp/exps). It only reads. Ctrl-C ends it.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer
from pydantic import ValidationError
from rich.live import Live
from rich.text import Text

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import load_params
from abctune.core.places import TRAIN
from abctune.core.records import LiveSampleRecord
from abctune.study.inputs import CURVES, read_curve
from stages.plot.colors import COLORS
from tools.command import run_command

ELSEWHERE = (".dvc/tmp/exps/*", ".dvc/tmp/exps/*/*")  # where queued and temporary runs work
CHARTS = {"train_loss": "train loss", "eval_loss": "loss on the variant's own validation rows"}
LOSSES = {"train_loss": "train loss", "eval_loss": "eval loss"}
LOG = "plots/metrics/train/loss.tsv"  # DVCLive's, in a replicate's folder
SAMPLES = 3
TICKS = 5
SILENT = 300  # seconds without news after which a run is said to be silent: an evaluation can take minutes


class Mark(NamedTuple):
    """A step and when it was logged, in seconds since the epoch."""

    step: int
    time: float


@dataclass(frozen=True)
class Progress:
    """One variant's training, as far as it has come."""

    variant: str
    curves: dict[str, pd.DataFrame]  # as in the report: step and a column named like the key
    steps: int | None  # of a replicate; None where params.yaml does not say
    replicate: int  # which of the variant's replicates trains, or trained last, counted from 1
    replicates: int  # in all
    started: float  # time of the first log, in seconds since the epoch
    updated: float  # time of the last
    done: bool
    samples: list[LiveSampleRecord]

    @property
    def step(self) -> int:
        """The last optimizer step that was logged."""
        return max((int(curve["step"].max()) for curve in self.curves.values() if len(curve)), default=0)

    def seconds_left(self, since: Mark | None = None) -> float | None:
        """For all replicates, at the pace since `since`, else since the first log; None before there is a pace.

        The pace since the first log is wrong for a run that was interrupted and taken up again.
        """
        curve = self.curves["train_loss"]
        if since is None or since.step >= self.step:
            since = Mark(int(curve["step"].min()) if len(curve) else self.step, self.started)
        walked = self.step - since.step
        if self.steps is None or walked <= 0:
            return None
        still = self.steps * (self.replicates - self.replicate) + self.steps - self.step
        return (self.updated - since.time) / walked * max(0, still)


@exits_with_one_line
def main(
    every: Annotated[float, typer.Option(min=0.2, help="seconds between two drawings")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="draw once and end")] = False,
) -> None:
    """Redraw the training's progress until Ctrl-C."""
    seen: dict[tuple[Path, str], Mark] = {}
    if once or not sys.stdout.isatty():
        print(now(seen))
        return
    with Live(screen=True, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            try:
                text = now(seen)
            except UserError as error:  # nothing yet, or a file between two states
                text = f"waiting: {error}"
            live.update(Text.from_ansi(text), refresh=True)
            time.sleep(every)


def now(seen: dict[tuple[Path, str], Mark]) -> str:
    """The screen of this moment. `seen` keeps where each training was when it was first looked at."""
    place, size = current_run(Path()), shutil.get_terminal_size((100, 40))
    runs = read_progress(place)
    for run in runs:
        mark = seen.setdefault((place, run.variant), Mark(run.step, run.updated))
        if mark.step > run.step:  # started again
            seen[place, run.variant] = Mark(run.step, run.updated)
    marks = {run.variant: seen[place, run.variant] for run in runs}
    return screen(place, runs, marks, time.time(), size.columns, size.lines)


def current_run(root: Path) -> Path:
    """The folder whose training wrote last; one that is under way comes before all that are done.

    Raises:
        UserError: nothing has trained here yet.
    """
    places = [root, *(place for pattern in ELSEWHERE for place in root.glob(pattern))]
    runs = [
        (not is_done(folder), last_written(folder), place)
        for place in places
        for folder in variant_folders(place)
    ]
    if not runs:
        raise UserError(
            f"no {TRAIN}/<variant> here yet; it appears at the first log of `dvc repro`'s train stage"
        )
    return max(runs)[-1]


def variant_folders(place: Path) -> set[Path]:
    """The folders of variants whose training has logged a loss."""
    return {log.parents[4] for log in (place / TRAIN).glob(f"*/*/{LOG}")}


def newest_replicate(folder: Path) -> Path:
    """The folder of a variant's last replicate that has logged; earlier ones are done, or train at the same time."""
    return max((log.parents[3] for log in folder.glob(f"*/{LOG}")), key=lambda one: int(one.name))


def is_done(folder: Path) -> bool:
    """training.json is the last file that a variant's training writes."""
    return (folder / "training.json").exists()


def last_written(folder: Path) -> float:
    """When the training last logged a loss, in seconds since the epoch."""
    return (newest_replicate(folder) / LOG).stat().st_mtime


def read_progress(place: Path) -> list[Progress]:
    """The progress of every variant that has trained in a project folder."""
    return [progress_of(place, folder) for folder in sorted(variant_folders(place))]


def progress_of(place: Path, folder: Path) -> Progress:
    """The progress of one variant, from the files that training writes."""
    variant, newest = folder.name, newest_replicate(folder)
    curves = {
        name: read_curve(
            newest / f"plots/metrics/{CURVES[name]}.tsv", name, f"train@{variant}", required=False
        )
        for name in CHARTS
    }
    # A half-written last line is NaN, a diverged loss may be infinite: plotext crashes on both.
    curves = {name: curve[np.isfinite(curve[name].astype(float))] for name, curve in curves.items()}
    first, number = newest / LOG, int(newest.name)
    steps, replicates = lengths_of(place, variant)
    return Progress(
        variant=variant,
        curves=curves,
        steps=steps,
        replicate=number,
        replicates=max(replicates, number),
        started=first.parent.stat().st_mtime,  # a folder's own time is that of its newest file's creation
        updated=first.stat().st_mtime,
        done=is_done(folder),
        samples=read_samples(folder / "1" / "samples.jsonl"),  # the first replicate's: no other writes any
    )


def lengths_of(place: Path, variant: str) -> tuple[int | None, int]:
    """A replicate's optimizer steps (None where params.yaml does not say), and how many replicates there are."""
    try:
        params = load_params(place / "params.yaml")
        return params.train_of(variant).max_steps, params.replicates_of(variant)
    except (UserError, KeyError):  # being edited for the next run, or a variant that is gone
        return None, 1


def read_samples(path: Path) -> list[LiveSampleRecord]:
    """The newest samples. The last line may be half written."""
    found = []
    # Not splitlines(), which also parts at characters that stand unescaped in JSON's strings (U+2028, U+0085).
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for line in filter(None, lines[-SAMPLES - 2 :]):
        with suppress(ValidationError):
            found.append(LiveSampleRecord.model_validate_json(line))
    return found[-SAMPLES:]


def screen(
    place: Path, runs: list[Progress], marks: dict[str, Mark], at: float, width: int, height: int
) -> str:
    """Everything as text for a terminal of `width` columns and `height` lines, at a time in seconds."""
    under_way = [run for run in runs if not run.done]
    lines = [f"{place.resolve()}  {time.strftime('%H:%M:%S', time.localtime(at))}"]
    lines += [status(run, marks.get(run.variant), at) for run in runs]
    samples = [line for run in under_way or runs for line in sample_lines(run, width)][-2 * SAMPLES :]
    charts = [name for name in CHARTS if any(len(run.curves[name]) for run in runs)]
    rows = max(10, (height - len(lines) - len(samples) - 2) // max(1, len(charts)))
    lines += [chart(name, runs, width, rows) for name in charts]
    return "\n".join([*lines, *samples])


def status(run: Progress, since: Mark | None, at: float) -> str:
    """One line about a training: step, losses, time left."""
    steps = f"step {run.step}" + (f" of {run.steps}" if run.steps else "")
    if run.replicates > 1 and not run.done:
        steps = f"replicate {run.replicate} of {run.replicates}, {steps}"
    losses = [
        f"{LOSSES[name]} {curve[name].iloc[-1]:.3f}" for name, curve in run.curves.items() if len(curve)
    ]
    left = run.seconds_left(since)
    if run.done:
        state = "done"
    elif at - run.updated > SILENT:
        state = f"no news for {clock(at - run.updated)}: evaluating, or stopped"
    else:
        state = "time left after the next log" if left is None else f"{clock(left)} left"
    return f"{run.variant}: {', '.join([steps, *losses, state])}"


def clock(seconds: float) -> str:
    """A duration in words: `2 h 01 min`, `1 min 15 s`, `9 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def chart(name: str, runs: list[Progress], width: int, height: int) -> str:
    """One curve per variant in the report's colours; the axis ends at the longest run's last step to come."""
    import plotext

    figure, last = plotext.figure, max(run.steps or run.step for run in runs)
    figure.clear()
    figure.theme("colorless")  # the terminal's own background and ink
    figure.plot_size(width, height)
    figure.title(CHARTS[name])
    figure.ruler("x").lim(0, last)
    figure.ruler("x").ticks([round(last * i / TICKS) for i in range(TICKS + 1)])
    for i, run in enumerate(runs):
        curve = run.curves[name]
        if len(curve):
            marker = plotext.marker("braille", rgb(COLORS[i % len(COLORS)]))
            line = figure.signal(curve["step"].tolist(), curve[name].tolist(), marker=marker)
            figure.draw(line.lines().label(run.variant))
    return figure.build().string(colorless=not sys.stdout.isatty())


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of a color such as `#0072B2`."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def sample_lines(run: Progress, width: int) -> list[str]:
    """Two lines per sample, cut at the terminal's width, without control characters."""
    lines = []
    for sample in run.samples:
        for text in (f"{run.variant}, step {sample.step}: {sample.prompt}", f"  -> {sample.answer}"):
            lines.append("".join(c if c.isprintable() else " " for c in text)[:width])
    return lines


if __name__ == "__main__":
    run_command(main)
