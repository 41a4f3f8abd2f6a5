"""Compare base and all variants, with intervals, and write the report: `python -m stages.plot`."""

from __future__ import annotations

from pathlib import Path

import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output, write_json, write_text
from abctune.core.params import load_params
from abctune.study.comparison import compare
from abctune.study.exposure import confounds_of
from abctune.study.inputs import read_study
from abctune.study.summary import plot_tables, summary
from abctune.study.tasks import compare_tasks
from abctune.study.verdicts import verdicts_of
from stages.plot.cards import card
from stages.plot.figures import all_charts
from stages.plot.report import render_html, render_markdown, report_of

SUMMARY, PLOTS = Path("metrics/summary.json"), Path("plots")


@exits_with_one_line
def main() -> None:
    study = read_study(load_params())
    comparison = compare(study)
    verdicts = verdicts_of(comparison)
    tasks = compare_tasks(study)
    charts = all_charts(study, comparison, verdicts)
    confounds = confounds_of(study)
    report = report_of(study, comparison, verdicts, tasks, confounds, charts)

    # As a whole: no figure of an earlier run stays behind, and a full disk leaves both or neither.
    with atomic_output(PLOTS) as folder, atomic_output(SUMMARY) as numbers:
        folder.mkdir()
        for name, table in plot_tables(study, comparison).items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.8g", lineterminator="\n")
        for name, chart in charts.items():
            write_text(folder / f"{name}.svg", chart.svg)
        write_text(folder / "report.html", render_html(report))
        write_text(folder / "report.md", render_markdown(report))
        for name in study.trained:
            text = card(name, study, comparison, verdicts, tasks, confounds)
            write_text(folder / "cards" / f"{name}.md", text)
        write_json(numbers, summary(study, comparison, verdicts, tasks))

    print("\n".join(report["headlines"]))
    print(f"The report, with every source and the reasons: {PLOTS / 'report.html'}")


if __name__ == "__main__":
    typer.run(main)
