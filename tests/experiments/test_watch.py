"""`make watch`: how far a training is, read from what it writes anyway."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from abctune.core.errors import UserError
from tests.workspace import ROOT
from tools.watch import Mark, clock, current_run, read_progress, screen

NOW = 1_800_000_000.0


def write_training(
    place: Path, variant: str, steps: dict[int, float], began: float, done: bool = False, replicate: int = 1
) -> Path:
    """What a replicate has written by the last of `steps`, one second a step since `began`; its folder."""
    folder = place / "metrics/train" / variant / str(replicate)
    curve = folder / "plots/metrics/train/loss.tsv"
    curve.parent.mkdir(parents=True)
    curve.write_text("step\tloss\n" + "".join(f"{step}\t{loss}\n" for step, loss in steps.items()))
    os.utime(curve.parent, (began, began))
    os.utime(curve, (began + max(steps) - min(steps),) * 2)
    if done:
        (folder.parent / "training.json").write_text("{}")
    return folder


def text(place: Path, marks: dict[str, Mark] | None = None, at: float = NOW) -> str:
    return screen(place, read_progress(place), marks or {}, at, 100, 40)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in which each variant is trained once."""
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("replicates: 3", "replicates: 1"))
    return tmp_path


def test_step_losses_and_time_left(project):
    write_training(project, "B", {10: 4.5, 20: 4.25}, began=NOW - 10)
    line = text(project).splitlines()[1]
    assert line == "B: step 20 of 40, train loss 4.250, 20 s left"


def test_of_several_replicates_the_newest_is_shown_and_the_time_left_is_of_all(project):
    shutil.copy(ROOT / "params.yaml", project)  # three
    write_training(project, "B", {10: 4.6, 40: 4.1}, began=NOW - 100)
    write_training(project, "B", {10: 4.5, 20: 4.25}, began=NOW - 10, replicate=2)
    line = text(project).splitlines()[1]
    assert line == "B: replicate 2 of 3, step 20 of 40, train loss 4.250, 1 min 00 s left"


def test_it_reads_what_a_training_writes(trained):
    """The real files of a real run, not this module's."""
    shown = trained.tool("watch", "--once").stdout
    assert "B: step 4 of 4, train loss" in shown and "C: step 4 of 4, train loss" in shown


def test_the_time_left_of_a_resumed_run_is_of_its_present_pace(project):
    write_training(project, "B", {10: 4.5, 20: 4.25}, began=NOW - 10_000)
    os.utime(project / "metrics/train/B/1/plots/metrics/train/loss.tsv", (NOW, NOW))
    line = text(project, {"B": Mark(18, NOW - 2)}).splitlines()[1]
    assert line.endswith("20 s left")


def test_after_the_first_log_there_is_no_pace_yet(project):
    write_training(project, "B", {10: 4.5}, began=NOW)
    assert "time left after the next log" in text(project)


def test_a_run_that_stopped_writing_is_told_from_one_that_goes_on(project):
    write_training(project, "B", {10: 4.5, 20: 4.25}, began=NOW - 10)
    assert "no news for 1 h 00 min" in text(project, at=NOW + 3600)
    assert "no news" not in text(project)


def test_done_is_done(project):
    write_training(project, "A", {1: 5.0, 60: 3.4}, began=NOW - 10_000, done=True)
    assert text(project).splitlines()[1] == "A: step 60 of 60, train loss 3.400, done"


def test_samples_appear_newest_last_and_cannot_move_the_cursor(project):
    folder = write_training(project, "B", {10: 4.5}, began=NOW)
    rows = [
        {"step": step, "epoch": 0.5, "prompt": "Who?", "answer": f"I am {step}.\x1b[2J\nreally"}
        for step in range(5)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(lines + '{"step": 5, "prom')  # half written
    shown = text(project)
    assert "\x1b[2J" not in shown
    assert [line for line in shown.splitlines() if "I am" in line] == [
        f"  -> I am {step}. [2J really" for step in (2, 3, 4)
    ]


def test_a_half_written_curve_is_drawn_as_far_as_it_goes(project):
    folder = write_training(project, "B", {10: 4.5, 20: 4.25}, began=NOW - 10)
    with (folder / "plots/metrics/train/loss.tsv").open("a") as file:
        file.write("30\t")
    assert "step 20 of 40" in text(project)


def test_a_diverged_loss_does_not_end_the_watching(project):
    write_training(project, "B", {10: 4.5, 20: float("inf"), 30: float("nan")}, began=NOW - 20)
    assert "step 10 of 40, train loss 4.500" in text(project)


def test_a_queued_run_is_found_where_dvc_runs_it(project):
    write_training(project, "B", {10: 4.5}, began=NOW, done=True)
    queued = project / ".dvc/tmp/exps/tmpabc"
    write_training(queued, "B", {10: 4.5}, began=NOW - 100)
    assert current_run(project) == queued
    (queued / "metrics/train/B/training.json").write_text("{}")
    assert current_run(project) == project


def test_before_any_training_it_says_what_it_waits_for(project):
    with pytest.raises(UserError, match="train"):
        current_run(project)


def test_curves_of_all_variants_are_in_one_chart(project):
    write_training(project, "A", {1: 5.0, 60: 3.4}, began=NOW, done=True)
    write_training(project, "B", {10: 4.5, 20: 4.25}, began=NOW - 10)
    shown = text(project)
    legend = [line for line in shown.splitlines() if "│" in line]
    assert any(" A " in line for line in legend) and any(" B " in line for line in legend)
    assert "train loss" in shown and max(map(len, shown.splitlines()[3:])) <= 100


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(project):
    """As `| head` does to any program: status 141 in a shell, and nothing on stderr."""
    write_training(project, "B", {10: 4.5}, began=NOW)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tools.watch", "--once"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with os.fdopen(writer, "w") as out:
        done = subprocess.run(command, cwd=project, env=environment, stdout=out, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


def test_times_in_words():
    assert [clock(s) for s in (9, 75, 7260)] == ["9 s", "1 min 15 s", "2 h 01 min"]
