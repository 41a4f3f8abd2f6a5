"""All replicates of a variant are scored on one loaded base, each to the bit as if it had been loaded alone."""

from __future__ import annotations

import json

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from abctune.core.errors import UserError
from abctune.core.records import GENERAL, EvalRecord, read_record
from abctune.core.schemas import conversations_schema
from abctune.llm.inference import load_for_inference, replace_adapter
from abctune.llm.likelihood import conversation_nll
from stages.eval.fused import fuse_adapter
from stages.eval.metrics import METRICS
from stages.eval.replicates import Adapters
from tests.eval.trained import write_replicates

ROWS = [[5, 17, 200, 31, 8, 90, 3], [44, 2, 2, 101], [7] * 40]


@pytest.fixture
def project(ready_to_train, monkeypatch):
    write_replicates(ready_to_train.root, "B", 3, published=2)
    ready_to_train.set(profiles__tiny__eval__task_prompts=0, profiles__tiny__eval__max_new_tokens=4)
    monkeypatch.chdir(ready_to_train.root)
    return ready_to_train


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
def test_a_replaced_adapter_is_a_freshly_loaded_one_to_the_bit(project, dtype, fused):
    places = [project.root / "models/replicates/B" / number for number in "123"]

    def prepared(model):
        if fused:
            fuse_adapter(model)
        return conversation_nll(model, ROWS, ROWS, batch_tokens=100)

    fresh = [prepared(load_for_inference(dtype, place)) for place in places]
    model = load_for_inference(dtype, places[0])
    prepared(model)
    found = {}
    for index in (1, 2, 0):
        replace_adapter(model, places[index])
        found[index] = prepared(model)
    assert [found[index] for index in range(3)] == fresh
    assert fresh[0] != fresh[1] != fresh[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_replicate_scores_as_when_loaded_alone_however_it_was_made_faster(project, dtype):
    adapters = Adapters("B")
    assert adapters.numbers == (2, 1, 3)  # the published one first
    for number in adapters.numbers:
        alone = load_for_inference(dtype, project.root / "models/replicates/B" / str(number))
        expected = conversation_nll(alone, ROWS, ROWS, batch_tokens=100)
        found = conversation_nll(adapters.model(number, dtype), ROWS, ROWS, batch_tokens=100)
        # Merged into float32 weights it differs by rounding; in 16 bits it is not merged, which would show.
        assert found == (pytest.approx(expected, rel=1e-6) if dtype == torch.float32 else expected)


def test_eval_scores_every_replicate_and_asks_the_published_one(project):
    project.stage("eval", "B")
    folder = project.root / "metrics/eval/B"
    record = read_record(folder / "metrics.json", EvalRecord, "eval@B")
    assert (record.replicates, record.published) == (3, 2)
    table = pq.read_table(folder / "conversations.parquet")
    assert table.schema.remove_metadata() == conversations_schema(record.metrics)
    parts = [table.filter(pc.equal(table["replicate"], number)) for number in (1, 2, 3)]
    for column in ("id", "group", "source", "n_supervised"):
        assert parts[0][column] == parts[1][column] == parts[2][column], (
            "not the same rows, or not their order"
        )
    assert len({tuple(part["nll"].to_pylist()) for part in parts}) == 3
    assert GENERAL in set(table["source"].to_pylist()) and GENERAL in record.sources
    answers = [json.loads(line)["answer"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    # The same as a variant whose only adapter is the published one.
    write_replicates(project.root, "A", 2, published=2)
    project.stage("eval", "A")
    other = project.root / "metrics/eval/A"
    assert answers == [
        json.loads(line)["answer"] for line in (other / "samples.jsonl").read_text().splitlines()
    ]


def test_adapters_of_several_recipes_are_refused(project):
    settings = project.root / "models/replicates/B/3/adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 64}))
    with pytest.raises(UserError, match=r"several recipes; run `dvc repro --force --single-item train@B`"):
        Adapters("B")


def test_the_order_in_which_peft_writes_a_set_does_not_matter(project):
    path = project.root / "models/replicates/B/3/adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"target_modules": settings["target_modules"][::-1]}))
    assert Adapters("B").numbers == (2, 1, 3)


def test_a_missing_replicate_says_what_makes_it(project):
    (project.root / "models/replicates/B/3/adapter_model.safetensors").unlink()
    done = project.stage("eval", "B", check=False)
    assert done.returncode == 1
    assert (
        "models/replicates/B/3/adapter_model.safetensors not found; `dvc repro train@B` makes it"
        in done.stderr
    )
    assert not (project.root / "metrics/eval/B").exists()


def test_every_metric_has_columns_of_its_own():
    names = [metric.record.name for metric in METRICS]
    assert names[0] == "loss" and len(set(names)) == len(names)
    sums = [metric.record.sum for metric in METRICS]
    assert len(set(sums)) == len(sums)
