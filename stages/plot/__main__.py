"""Compare base and all variants, with intervals, and write the report: `python -m stages.plot`."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output, write_json, write_text
from abctune.core.params import Params, load_params
from abctune.core.records import write_record
from abctune.study.comparison import compare
from abctune.study.exposure import confounds_of
from abctune.study.inputs import read_study
from abctune.study.leftovers import leftovers
from abctune.study.places import COLLECTED, PLOTS, SERVED, STUDY, SUMMARY
from abctune.study.results import study_record
from abctune.study.served import compare_served
from abctune.study.summary import plot_tables, summary
from abctune.study.tasks import compare_tasks
from abctune.study.verdicts import verdicts_of
from stages.plot.cards import card
from stages.plot.figures import all_charts
from stages.plot.report import render_html, render_markdown, report_of


@exits_with_one_line
def main() -> None:
    """Read, compare, write; then print what was found."""
    params = load_params()
    study = read_study(params)
    comparison = compare(study)
    verdicts, tasks, served = verdicts_of(comparison), compare_tasks(study), compare_served(study)
    confounds = confounds_of(study)
    charts = all_charts(study, comparison, verdicts)
    report = report_of(study, comparison, verdicts, tasks, served, confounds, charts)

    # As a whole: no figure of an earlier run stays behind, and a full disk leaves all or none.
    with atomic_output(PLOTS) as folder, atomic_output(SUMMARY) as numbers, atomic_output(STUDY) as results:
        folder.mkdir()
        for name, table in plot_tables(study, comparison).items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.8g", lineterminator="\n")
        for name, chart in charts.items():
            write_text(folder / f"{name}.svg", chart.svg)
        write_text(folder / "report.html", render_html(report))
        write_text(folder / "report.md", render_markdown(report))
        for name in study.trained:
            text = card(name, study, comparison, verdicts, tasks, served, confounds)
            write_text(folder / "cards" / f"{name}.md", text)
        write_json(numbers, summary(study, comparison, verdicts, tasks, served).as_json())
        write_record(results, study_record(study, comparison, verdicts, tasks, served))

    forget_removed_variants(params)
    print("\n".join(report["headlines"]))
    print(f"The report, with every source and the reasons: {PLOTS / 'report.html'}")


def forget_removed_variants(params: Params) -> None:
    """Drop collected copies of variants, and scores of exports, that params.yaml no longer has; name what else is left.

    They are part of folders that this stage depends on: DVC hashes them after the stage has run, so that the
    lock file says the same here as in a clone that never had those variants.
    """
    left = leftovers(params)
    for path in left:
        if within(path, COLLECTED, SERVED) and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if others := [str(path) for path in left if not within(path, COLLECTED, SERVED)]:
        named = ", ".join(others)
        print(f"note: no variant or source of params.yaml has {named}; `python -m tools.prune` removes them")


def within(path: Path, *folders: Path) -> bool:
    """Whether a path is inside one of the folders."""
    return any(path.is_relative_to(folder) for folder in folders)


if __name__ == "__main__":
    typer.run(main)
