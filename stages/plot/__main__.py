"""Compare base and all variants, with intervals, and write the report: `python -m stages.plot`."""

from __future__ import annotations

import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output, write_json, write_text
from abctune.core.params import load_params
from abctune.core.places import PLOTS, STUDY, SUMMARY
from abctune.core.records import write_record
from abctune.study.comparison import compare
from abctune.study.exposure import confounds_of
from abctune.study.inputs import read_study
from abctune.study.results import study_record
from abctune.study.served import compare_served
from abctune.study.summary import plot_tables, summary
from abctune.study.tasks import compare_tasks
from abctune.study.verdicts import verdicts_of
from stages.plot.cards import card
from stages.plot.figures import all_charts
from stages.plot.removed import forget_removed_variants
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


if __name__ == "__main__":
    typer.run(main)
