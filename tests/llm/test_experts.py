"""A model of stacked experts: verify finds its adapter in order, the app answers with it, and no GGUF adapter is made."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from abctune.core.errors import UserError
from abctune.llm.chat import prompt_ids
from app.engines import Job
from app.engines.lora_gguf import convert
from app.engines.transformers_engine import TransformersEngine
from app.request import Sampling
from tests import small
from tests.llm.test_architectures import ARCHITECTURES, SHAPE
from tools.verify.adapters import by_peft, shapes_of

GREEDY = Sampling(temperature=0, repetition_penalty=1)


@pytest.fixture
def experts(tmp_path, monkeypatch):
    """models/base, a Qwen3-MoE, and two adapters on all that PEFT reaches in it; the working directory."""
    monkeypatch.chdir(tmp_path)
    tokenizer = small.chatml_tokenizer()
    config = AutoConfig.for_model(
        "qwen3_moe", **SHAPE | ARCHITECTURES["qwen3_moe"] | {"vocab_size": len(tokenizer)}
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained("models/base")
    tokenizer.save_pretrained("models/base")
    for seed, name in enumerate("AB"):
        base = AutoModelForCausalLM.from_pretrained("models/base")
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(base, lora).save_pretrained(f"models/{name}")
    return tmp_path


def test_the_adapter_is_what_peft_makes_on_this_base(experts):
    found = shapes_of(experts / "models/A/adapter_model.safetensors")
    assert any("experts" in name for name in found)
    assert by_peft(experts / "models/A") == found


def test_the_app_answers_with_each_adapter_and_the_base_in_one_request(experts):
    tokenizer = small.chatml_tokenizer()
    paths = {name: experts / "models" / name for name in "AB"}
    engine = TransformersEngine(experts / "models/base", paths, tokenizer, 256, torch.float32)

    def answers(*models):
        jobs = [
            Job(model, prompt_ids(tokenizer, [{"role": "user", "content": "hi"}]), 6, GREEDY)
            for model in models
        ]
        found = [""] * len(jobs)
        for piece in engine.stream(jobs):
            found[piece.index] += piece.text
        return found

    alone = [answers(name)[0] for name in ("A", "base", "B")]
    assert answers("A", "base", "B") == alone and len(set(alone)) == 3


def test_its_adapter_is_no_gguf_adapter_and_that_is_said(experts):
    with pytest.raises(UserError, match="cannot apply alpha_pattern, rank_pattern; use --engine"):
        convert(experts / "models/A", experts / "models/base", experts / "A.gguf")
