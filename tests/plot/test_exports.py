"""Exported files' losses on the test rows, as `served` writes them, in all that plot makes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from abctune.core.errors import UserError
from abctune.core.params import load_params
from abctune.study.inputs import read_study
from abctune.study.leftovers import leftovers
from abctune.study.served import compare_served
from stages.plot.__main__ import main

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def exported(fake_run):
    """A study whose base and B were exported as q8_0, at no cost, and as q4_k_m, at 0.5 nats per token."""
    root = fake_run()
    yaml = YAML()
    params = yaml.load((root / "params.yaml").read_text())
    params["export"] = {"variants": ["B"], "formats": ["q8_0", "q4_k_m"]}
    with (root / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    for model in ("base", "B"):
        for fmt, costs in {"q8_0": 0.0005, "q4_k_m": 0.5}.items():
            rows = judged(model).assign(format=fmt)
            rows["nll"] += costs * rows["n_supervised"]
            path = Path(f"metrics/served/{model}/{fmt}.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            rows[["id", "group", "source", "format", "nll", "n_supervised"]].to_parquet(path, index=False)
    return root


def judged(model):
    """The first replicate's rows."""
    rows = pd.read_parquet(f"metrics/eval/{model}/conversations.parquet")
    return rows[(rows["replicate"] == 1) & (rows["source"] != "general")]


def test_what_an_exported_file_costs_is_said_everywhere(exported, capsys):
    main()
    b = json.loads(Path("metrics/summary.json").read_text())["B"]["served"]
    assert b["q8_0"].startswith("equivalent") and b["q4_k_m"].startswith("worse by 0.50")
    assert "B as served, compared with how it was judged (nats): q8_0 equivalent" in capsys.readouterr().out
    for page in ("report.md", "report.html", "cards/B.md"):
        assert "q4_k_m" in Path("plots", page).read_text()
    assert "q4_k_m" not in Path("plots/cards/C.md").read_text()


def test_the_gain_of_a_format_is_over_base_in_the_same_format(exported):
    base, b = judged("base"), judged("B")
    gain = (base["nll"].sum() - b["nll"].sum()) / b["n_supervised"].sum()
    for one in compare_served(read_study(load_params())):
        assert one.model == "B" and one.gain == pytest.approx(gain)  # the format costs both the same
    path = Path("metrics/served/base/q4_k_m.parquet")
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)
    with pytest.raises(UserError, match=r"base was scored as served.*single-item served-base@q4_k_m"):
        compare_served(read_study(load_params()))
    path.unlink()
    with pytest.raises(UserError, match="served-base@q4_k_m"):
        read_study(load_params())


def test_the_bases_export_is_no_leftover(exported):
    Path("models/exported/base/q8_0").mkdir(parents=True)
    assert leftovers(load_params()) == []


def test_a_file_that_was_not_scored_is_named_with_its_stage(exported):
    Path("metrics/served/B/q8_0.parquet").unlink()
    with pytest.raises(UserError, match="served@B-q8_0"):
        read_study(load_params())


def test_scores_of_a_format_that_is_no_longer_exported_change_nothing(exported):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("- q8_0\n", "").replace("q8_0, ", ""))
    assert Path("metrics/served/B/q8_0.parquet") in leftovers(load_params())
    main()
    assert not Path("metrics/served/B/q8_0.parquet").exists()
    assert "q8_0" not in json.loads(Path("metrics/summary.json").read_text())["B"]["served"]
