"""What Git sees of a run: nothing where results are equal, next to nothing where they differ by an arithmetic's last digits."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.plot.figures.style import drawn_step, rounded_to
from tests.workspace import Workspace


def shift_losses(project: Workspace, nats: float) -> None:
    """Every loss that `plot` reads, of conversations (per token) and of curves, moved by as much."""
    scored = [project.root / "metrics/eval/base/conversations.parquet"]
    for path in [*scored, *project.root.glob("metrics/collected/*/eval/conversations.parquet")]:
        schema, rows = pq.read_schema(path), pq.read_table(path).to_pandas()
        rows["nll"] += nats * rows["n_supervised"]
        pq.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False), path)
    for path in project.root.glob("metrics/collected/*/train/*/plots/metrics/*/loss.tsv"):
        curve = pd.read_csv(path, sep="\t")
        curve["loss"] += nats
        curve.to_csv(path, sep="\t", index=False)


@pytest.mark.faults  # two runs of plot
def test_equal_results_change_no_file_and_a_hundred_thousandth_of_a_nat_next_to_none(
    study: Workspace,
) -> None:
    study.draws = True
    study.stage("plot")
    assert study.git("status", "--porcelain") == ""
    shift_losses(study, 1e-5)
    study.stage("plot")
    lines = [line.split("\t") for line in study.git("diff", "--numstat").splitlines()]
    changed = {name: int(added) for added, _, name in lines}
    # A value at the edge of a rounding moves by one step of it, so that "nothing" cannot be promised.
    assert set(changed) <= {
        "metrics/summary.json",
        "plots/test_loss.csv",
        "plots/curves.svg",
        "plots/report.html",
    }
    assert changed.get("plots/curves.svg", 0) <= 4 and sum(changed.values()) <= 14, changed


def test_a_curve_is_rounded_to_less_than_a_pixel_of_its_panel() -> None:
    assert [drawn_step(span) for span in (2.1, 0.9, 0.41, 0.0)] == pytest.approx([0.01, 0.002, 0.002, 0.001])
    curve = pd.Series([2.718281828, 2.71828])
    assert rounded_to(0.01, curve).tolist() == pytest.approx([2.72, 2.72])
    assert rounded_to(0.0, curve).tolist() == curve.tolist()
