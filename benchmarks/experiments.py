"""What DVC adds to the loop of change, run, compare: `python -m benchmarks.experiments`.

In a clone of the last commit, with a cache of its own: the time of `dvc exp run -S variants.B.train.learning_rate=...`
in addition to the stages that it runs (to stay at 10 s or below), then, with 20 experiments, of `dvc exp show`, `make exp`'s
table, a `dvc repro` that runs nothing, and the calls of DVC's extension for VS Code (3 s or below each). Writes
benchmarks/results/experiments.json. Needs a finished `dvc repro`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from abctune.core.files import write_json
from abctune.core.provenance import hardware, versions

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/experiments.json"
EXPERIMENTS, REPEATS = 20, 3
COMMANDS = {
    "dvc_exp_show_seconds": ("dvc", "exp", "show", "--no-pager"),
    "table_seconds": ("python", "-m", "tools.experiments"),
    "noop_repro_seconds": ("dvc", "repro"),
    # What the extension asks for, whenever a file changes: its table, its tree of tracked files, its charts.
    "vscode_exp_show_seconds": ("dvc", "exp", "show", "--json"),
    "vscode_data_status_seconds": ("dvc", "data", "status", "--granular", "--unchanged", "--json"),
    "vscode_plots_diff_seconds": ("dvc", "plots", "diff", "--split", "--json", "HEAD", "measured", "saved-0"),
}
# Stands for `python` in the stages' commands and notes when each began and ended.
STOPWATCH = """#!/bin/sh
began=$(date +%s.%N)
"{python}" "$@"
status=$?
echo "$2 $3 $began $(date +%s.%N)" >> "{log}"
exit $status
"""


def main(
    steps: Annotated[int | None, typer.Option(help="train B for this many steps only, to try it out")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone = finished_clone(Path(folder))
        run = exp_run(clone, Path(folder), steps)
        print(
            f"dvc exp run: {run['seconds']:.1f} s, of them stages {run['stages_seconds']:.1f} s", flush=True
        )
        call(clone, "git", "checkout", "--quiet", ".")
        call(clone, "dvc", "checkout", "--quiet")
        for i in range(EXPERIMENTS - 1):
            save_experiment(clone, i)
        show = {name: best_of(clone, *command) for name, command in COMMANDS.items()}
        columns = call(clone, "dvc", "exp", "show", "--csv").splitlines()[0].count(",") + 1
    result = {
        "exp_run": run,
        "experiments": EXPERIMENTS,
        "dvc_exp_show_columns": columns,
        **show,
        "hardware": hardware(),
        "versions": versions(),
    }
    if steps is None:
        write_json(RESULTS, result)
    print(f"with {EXPERIMENTS} experiments: {show}")


def finished_clone(folder: Path) -> Path:
    """The last commit with its outputs, and a cache that shares the original's objects."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    shutil.copytree(ROOT / ".dvc/cache", clone / ".dvc/cache", copy_function=link_or_copy)
    for setting in ("user.name bench", "user.email bench@example.invalid"):
        subprocess.run(["git", "config", *setting.split()], cwd=clone, check=True)
    call(clone, "dvc", "checkout", "--quiet")
    if "Running stage" in (planned := call(clone, "dvc", "repro", "--dry")):
        stage = re.findall(r"Running stage '([^']+)'", planned)[0]
        raise SystemExit(f"{stage} has not run as committed; `dvc repro` and commit first")
    return clone


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def exp_run(clone: Path, folder: Path, steps: int | None) -> dict[str, float | dict[str, float]]:
    """A learning rate that was never tried: seconds in all, in the stages, and in addition to them."""
    log, shims = folder / "stopwatch", folder / "bin"
    shims.mkdir()
    (shims / "python").write_text(STOPWATCH.format(python=sys.executable, log=log))
    (shims / "python").chmod(0o755)
    rate = f"{1 + time.time_ns() % 10**6 / 10**7:.7f}e-4"
    settings = [f"variants.B.train.learning_rate={rate}"]
    settings += [f"variants.B.train.max_steps={steps}"] if steps else []
    options = [word for setting in settings for word in ("-S", setting)]
    started = time.perf_counter()
    call(clone, "dvc", "exp", "run", "--name", "measured", *options, first=shims)
    seconds = time.perf_counter() - started
    lines = [line.split() for line in log.read_text().splitlines()]
    stages = {module: round(float(ended) - float(began), 2) for module, *_, began, ended in lines}
    if list(stages) != ["stages.train", "stages.eval", "stages.collect", "stages.plot"]:
        raise SystemExit(f"not train, eval, collect and plot ran, but {', '.join(stages)}")
    inside = sum(stages.values())
    return {
        "seconds": round(seconds, 2),
        "stages": stages,
        "stages_seconds": round(inside, 2),
        "overhead_seconds": round(seconds - inside, 2),
    }


def save_experiment(clone: Path, i: int) -> None:
    """One more experiment without a run: a param that only plot's record depends on."""
    params = clone / "params.yaml"
    text = re.sub(r"^seed: \d+", f"seed: {i + 1}", params.read_text(), count=1, flags=re.M)
    params.write_text(text)
    call(clone, "dvc", "exp", "save", "--force", "--quiet", "--name", f"saved-{i}")
    call(clone, "git", "checkout", "--quiet", ".")


def best_of(clone: Path, *command: str) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call(clone, *command)
        times.append(time.perf_counter() - started)
    return round(min(times), 2)


def call(clone: Path, *command: str, first: Path | None = None) -> str:
    path = os.pathsep.join(
        [*([str(first)] if first else []), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    done = subprocess.run(command, cwd=clone, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout


if __name__ == "__main__":
    typer.run(main)
