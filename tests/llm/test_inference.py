"""Where a model's weights are, and what may run on them then."""

import sys
from types import SimpleNamespace

import pytest
import torch

from abctune.llm import inference
from tests import small


@pytest.mark.parametrize(("on", "fused"), [("cpu", 1), ("meta", 0)])
def test_kernels_that_need_the_current_gpu_are_not_used_on_a_model_that_is_on_several(
    tmp_path, monkeypatch, on, fused
):
    """Another device for one weight stands for a second GPU, whose memory Triton's kernels refuse."""
    small.write_model(tmp_path / "base")
    calls: list[object] = []
    monkeypatch.setattr(inference, "fuse", calls.append)
    one_gpu = SimpleNamespace(is_available=lambda: True, device_count=lambda: 1)
    monkeypatch.setattr(inference, "torch", SimpleNamespace(cuda=one_gpu))
    is_whole = inference.is_whole
    monkeypatch.setattr(inference, "is_whole", lambda model: is_whole(moved(model, on)))
    inference.load_for_inference(torch.float32, base=tmp_path / "base")
    assert len(calls) == fused


def test_a_model_on_several_gpus_has_its_own_rotary_embeddings_after_one_that_was_on_one(
    tmp_path, monkeypatch
):
    """Liger replaces the function of transformers' module, which all models of the architecture call."""
    small.write_model(tmp_path / "base")
    model = inference.load_for_inference(torch.float32, base=tmp_path / "base")
    module = sys.modules[type(model).__module__]
    own = module.apply_rotary_pos_emb
    monkeypatch.setattr(module, "apply_rotary_pos_emb", own)  # put back at the end, whatever happens
    liger = SimpleNamespace(apply_liger_kernel=lambda *_: setattr(module, "apply_rotary_pos_emb", None))
    monkeypatch.setitem(sys.modules, "transformers.integrations.liger", liger)
    inference.fuse(model)
    assert module.apply_rotary_pos_emb is None
    inference.restore_rotary(model)
    assert module.apply_rotary_pos_emb is own


def moved(model, device):
    model.model.norm.to(device)
    return model


def test_what_fits_no_gpu_is_told(tmp_path, monkeypatch, capsys):
    small.write_model(tmp_path / "base")
    places = {"device_map": {"model": "cpu", "lm_head": "disk"}, "offload_folder": str(tmp_path / "away")}
    monkeypatch.setattr(inference, "placement", lambda _: places)
    inference.load_for_inference(torch.float32, base=tmp_path / "base")
    assert "read from cpu and disk at every batch" in capsys.readouterr().out


def test_every_gpu_keeps_room_for_a_batch(monkeypatch):
    cards = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    monkeypatch.setattr(inference, "torch", SimpleNamespace(cuda=cards))
    monkeypatch.setattr(inference, "free_bytes", lambda index=0: (13 - index) * 2**30)
    assert inference.placement(15 * 2**30)["max_memory"] == {0: 10 * 2**30, 1: 9 * 2**30}
