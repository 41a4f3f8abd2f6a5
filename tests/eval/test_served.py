"""The published adapter is also scored on other formats of the base, where the profile has them in use."""

from __future__ import annotations

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from abctune.core.schemas import SERVED
from abctune.llm.inference import load_for_inference
from abctune.llm.likelihood import conversation_nll
from stages.eval.served import other_formats
from tests.eval.trained import write_replicates


@pytest.fixture
def project(ready_to_train, monkeypatch):
    write_replicates(ready_to_train.root, "B", 2, published=2)
    ready_to_train.set(
        profiles__tiny__eval__task_prompts=0,
        profiles__tiny__eval__max_new_tokens=4,
        profiles__tiny__eval__served_formats=["4bit", "16bit"],
    )
    monkeypatch.chdir(ready_to_train.root)
    return ready_to_train


def losses(project, model):
    """nll by format, "judged" among them, each in the order of the ids."""
    folder = project.root / "metrics/eval" / model
    table = pq.read_table(folder / "served.parquet")
    assert table.schema.remove_metadata() == SERVED
    judged = pq.read_table(folder / "conversations.parquet")
    judged = judged.filter(
        pc.and_(
            pc.is_in(judged["source"], table["source"].combine_chunks()),
            pc.equal(judged["replicate"], pc.max(judged["replicate"])),  # base's only one, B's published one
        )
    ).sort_by("id")
    found = {"judged": judged["nll"].to_pylist()}
    for form in table["format"].unique().to_pylist():
        rows = table.filter(pc.equal(table["format"], form)).sort_by("id")
        for column in ("id", "group", "source", "n_supervised"):
            assert rows[column].to_pylist() == judged[column].to_pylist()
        found[form] = rows["nll"].to_pylist()
    return found


def test_base_and_the_published_adapter_are_scored_on_each_format(project):
    for model in ("base", "B"):
        project.stage("eval", model)
        found = losses(project, model)
        assert set(found) == {"judged", "4bit", "16bit"}
        for form, near in (("16bit", 0.02), ("4bit", 0.2)):
            assert found[form] == pytest.approx(found["judged"], rel=near)
            assert found[form] != found["judged"]


def test_a_4_bit_base_has_16_values_a_block_and_serves_the_adapter(project):
    rows = [[5, 17, 200, 31, 8, 90, 3], [44, 2, 2, 101]]
    adapter = project.root / "models/B"
    model = load_for_inference(torch.float32, adapter, load_in_4bit=True)
    weights = model.get_base_model().model.layers[0].self_attn.k_proj.weight.flatten()
    assert weights.dtype == torch.float32
    assert max(len(block.unique()) for block in weights.split(64)) <= 16
    assert len(load_for_inference(torch.float32).model.layers[0].self_attn.k_proj.weight.unique()) > 200
    with_adapter = conversation_nll(model, rows, rows, 100)
    with model.disable_adapter():
        assert conversation_nll(model, rows, rows, 100) != with_adapter


def test_the_format_that_is_judged_is_not_scored_again():
    assert other_formats(["4bit", "16bit"], torch.bfloat16) == ["4bit"]
    assert other_formats(["4bit", "16bit"], torch.float32) == ["4bit", "16bit"]


def test_a_profile_with_one_format_has_no_such_rows(project):
    project.set(profiles__tiny__eval__served_formats=[])
    project.stage("eval", "B")
    assert pq.read_table(project.root / "metrics/eval/B/served.parquet").num_rows == 0
