"""Where a model's weights are, and what may run on them then."""

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


def moved(model, device):
    model.model.norm.to(device)
    return model
