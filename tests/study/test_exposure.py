"""The ledger of what was seen, and what two variants differ in."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from abctune.core.params import load_params
from abctune.study.comparison import compare
from abctune.study.exposure import confounds_of
from abctune.study.inputs import read_study
from stages.plot.cautions import warnings_of
from tests.plot.fake_run import RECIPES, collect, source_of


def training_record(variant: str) -> dict:
    return json.loads(Path(f"metrics/train/{variant}/training.json").read_text())


def rewrite(variant: str, record: dict) -> None:
    """Replace a variant's training record, as if it had been trained otherwise."""
    Path(f"metrics/train/{variant}/training.json").write_text(json.dumps(record))
    collect(Path(), variant)


def confound(model: str, reference: str):
    found = confounds_of(read_study(load_params()))
    return next(c for c in found if (c.model, c.reference) == (model, reference))


def test_one_difference_identifies_the_cause(fake_run):
    fake_run()
    assert confound("C", "B").sentence.startswith(
        "They differ in data only, so that is what a difference is due to"
    )


def test_adapters_of_different_steps_are_pointed_out(fake_run):
    """Keeping the lowest train loss may publish an early step: C differs from B in data, and in how long it learnt."""
    fake_run()
    record = training_record("C")
    record["replicates"][0]["kept"] = {"by": "train_loss", "step": 10, "value": 3.0}
    rewrite("C", record)
    study = read_study(load_params())
    theirs = study.trained["B"].record.published_replicate.kept.step
    assert confound("C", "B").sentence.endswith(
        f"Their published adapters are those of step 10 and step {theirs}."
    )
    assert any(
        "C: the published adapter is that of step 10 of 40" in line
        for line in warnings_of(study, compare(study, 99))
    )


def test_another_version_or_machine_is_a_cause_like_any_other(fake_run):
    """A variant trained a month ago, on another computer: nobody can say that its data made the difference."""
    fake_run()
    record = training_record("C")
    rewrite("C", record | {"versions": record["versions"] | {"torch": "1.0"}})
    found = confound("C", "B")
    assert found.differs["software"] == ({"torch": "1.0"}, {"torch": "2.14.1"})
    assert "what a difference is due to" not in found.sentence
    assert found.sentence.startswith(
        "They differ in data and software: the cause of a difference is not identified. "
        "Trained again with the same software, they would differ in data only."
    )
    rewrite("C", record | {"hardware": record["hardware"] | {"gpu": "a card"}})
    assert list(confound("C", "B").differs) == ["data", "hardware"]
    rewrite("C", record | {"versions": record["versions"] | {"abctune": "9.9"}})
    assert list(confound("C", "B").differs) == ["data"]


def test_several_differences_leave_the_cause_open_and_name_the_controls(fake_run):
    fake_run()
    found = confound("B", "A")
    assert list(found.differs) == ["data", "learning rate", "schedule", "steps"]
    assert "the cause of a difference is not identified" in found.sentence
    assert "A with B's data, learning rate, schedule or steps alone" in found.sentence
    assert [control.cause for control in found.controls] == ["data", "learning rate", "schedule", "steps"]


def test_a_control_is_a_line_that_makes_the_reference_with_one_change(fake_run):
    fake_run()
    control = confound("B", "A").controls[1]
    *command, override = shlex.split(control.command)
    assert command == ["dvc", "exp", "run", "-S"]
    name, _, value = override.partition("=")
    assert name == "+variants.D"
    variant = YAML(typ="safe", pure=True).load(value)
    params = load_params()
    assert variant["mix"] == dict(params.variants["A"].mix)
    assert variant["train"] == params.variants["A"].train | {
        "learning_rate": params.variants["B"].train["learning_rate"]
    }


def test_a_control_that_is_in_the_study_is_named(fake_run):
    """D is B with A's warmup: the very change of schedule between A and B."""
    fake_run(recipes={**RECIPES, "D": {**RECIPES["B"], "warmup_steps": 5}})
    assert "Compared alone in this study: schedule (D and B)" in confound("B", "A").sentence
    # A differs from C in data too, but not by the change that is between B and C.
    assert "data" not in confound("C", "A").sentence.split("Compared alone")[1].split(".")[0]


def test_the_same_step_from_another_batch_size_is_no_difference(fake_run):
    fake_run()
    record = training_record("C")
    record["arguments"] |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    rewrite("C", record)
    assert list(confound("C", "B").differs) == ["data"]
    record["arguments"] |= {"gradient_accumulation_steps": 16}
    rewrite("C", record)
    assert list(confound("C", "B").differs) == ["data", "batch"]


def test_what_ran_counts_not_what_params_say(fake_run):
    """Recipes are compared as resolved: here B ran in 4 bits, which params.yaml does not tell."""
    fake_run()
    rewrite("B", training_record("B") | {"load_in_4bit": True})
    assert list(confound("C", "B").differs) == ["data", "precision"]


def test_mixes_that_draw_the_same_rows_are_the_same_data(fake_run):
    """Two mixes that ask for more than a source has get the same rows."""
    fake_run(recipes={"A": RECIPES["B"], "B": {**RECIPES["B"], "mix": {"chat": 400}}})
    for variant in "AB":
        drawn = {"chat": {"asked": 400, "available": 250, "drawn": 250, "source": source_of("chat")}}
        Path(f"data/mixed/{variant}.json").write_text(json.dumps({"sources": drawn, "warnings": []}))
    collect()
    assert confound("B", "A").differs == {}


def test_the_ledger_counts_what_was_seen_and_how_far_the_optimizer_could_move(fake_run):
    fake_run()
    records = {name: run.record for name, run in read_study(load_params()).trained.items()}
    assert records["C"].exposure.conversations == {"chat": 80, "instruct": 80}
    assert records["B"].schedule.peak_share == pytest.approx(39 / 50)
    assert not records["B"].schedule.decays and records["A"].schedule.decays
    assert records["B"].schedule.sum_learning_rate == pytest.approx(2e-4 * sum(range(40)) / 50)
