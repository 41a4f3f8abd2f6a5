"""All experiments in one table that fits a terminal: `python -m tools.experiments`, or `make exp`.

`dvc exp show` has a column per metric and per changed param: many, once several things were tried. Here a row says
what an experiment changed, every model's test loss, and the differences that an interval shows. With --report, the
same table inside a copy of plots/report.html. The table cannot be part of the stage's own output: that must follow
from the stage's inputs alone, and an experiment exists only after the stage has run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import write_text
from abctune.study.rendering import cell, environment
from tools.command import run_command
from tools.exp_show import Row, read_rows

REPORT = Path("plots/report.html")
BEFORE = '<section id="losses">'  # the place in the report: after the verdicts
OTHER_TEST = "*"
NOTES = (
    "Loss in nats per supervised token; compare a row with the commit above it. Shown: 95 % interval and Holm's correction, within the row.",
    f"{OTHER_TEST} other test rows than that commit's (another seed, split or test mix): compare within the row only.",
    "[file]: code or own data that differ from that commit's.",
)
SECTION = """<section id="experiments">
<h2>Experiments</h2>
<div class="scroll"><table>
<thead><tr>{% for title in titles %}<th>{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for text in row %}<td{% if loop.index0 in wrapped %} class="wrap"{% endif %}>{{ text }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="small">{{ notes | join(" ") }}</p>
</section>

"""


@exits_with_one_line
def main(
    on: Annotated[
        str, typer.Option(help="the losses to show: overall, general, or a source such as chat")
    ] = "overall",
    all_commits: Annotated[
        bool, typer.Option("--all-commits", help="of all commits, not HEAD's alone")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="for a pull request")] = False,
    report: Annotated[Path | None, typer.Option(help="write the report with this table in it here")] = None,
) -> None:
    """Print all experiments as one table, or write the report with that table in it."""
    rows = read_rows(on, *(["--all-commits"] if all_commits else []))
    if report:
        write_text(report, with_experiments(REPORT, rows, on))
        count = sum(row.kind == "experiment" for row in rows)
        print(f"The report with {count} experiment{'' if count == 1 else 's'}: {report}")
    elif markdown:
        print(as_markdown(rows, on))
    else:
        Console().print(as_table(rows, on))
        print("\n".join(NOTES))


def models_of(rows: list[Row]) -> list[str]:
    """The models of all rows, in the order in which they first occur."""
    return list(dict.fromkeys(model for row in rows for model in row.losses))


def titles(rows: list[Row], on: str) -> list[str]:
    """The table's column titles."""
    return ["experiment", "changed", *(f"{model} {on}" for model in models_of(rows)), "shown"]


def cells(row: Row, models: list[str]) -> list[str]:
    """One row's cells as text."""
    mark = OTHER_TEST if row.other_test and row.kind != "commit" else ""
    losses = [f"{row.losses[model]:.4f}{mark}" if model in row.losses else "–" for model in models]
    indent = "" if row.kind != "experiment" else "  "
    return [f"{indent}{row.name}", "  ".join(row.changed), *losses, row.state or row.shown]


def as_table(rows: list[Row], on: str) -> Table:
    """For a terminal: what equals the commit's own value is dim, long cells wrap."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    models = models_of(rows)
    for i, title in enumerate(titles(rows, on)):
        table.add_column(title, no_wrap=2 <= i < 2 + len(models), overflow="fold")
    for row in rows:
        texts = [escape_markup(text) for text in cells(row, models)]
        for i, model in enumerate(models, start=2):
            if row.kind != "commit" and model not in row.moved:
                texts[i] = f"[dim]{texts[i]}[/dim]"
        table.add_row(*texts, style="bold" if row.kind == "commit" else None)
    return table


def as_markdown(rows: list[Row], on: str) -> str:
    """The table for a pull request."""
    names, models = titles(rows, on), models_of(rows)
    lines = [f"| {' | '.join(names)} |", f"|---|---|{'---:|' * len(models)}---|"]
    lines += [f"| {' | '.join(cell(text) for text in cells(row, models))} |" for row in rows]
    return "\n".join([*lines, "", *(f"{note}  " for note in NOTES)])


def with_experiments(page: Path, rows: list[Row], on: str) -> str:
    """The report's page with the table after its verdicts.

    Raises:
        UserError: the page does not exist, or is not the plot stage's report.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if text.count(BEFORE) != 1:
        raise UserError(f"{page} is missing or damaged; `dvc repro plot` makes it")
    models = models_of(rows)
    table = [cells(row, models) for row in rows]
    section = environment(escape=True).from_string(SECTION)
    wrapped = (1, 2 + len(models))
    return text.replace(
        BEFORE,
        section.render(titles=titles(rows, on), rows=table, notes=NOTES, wrapped=wrapped) + BEFORE,
    )


if __name__ == "__main__":
    run_command(main)
