"""The loss of every architecture is transformers' own, whatever its head does to the logits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from abctune.llm import heads
from abctune.llm.heads import head_of
from abctune.llm.likelihood import IGNORE, conversation_nll

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
# Every head is one matrix, but for: Granite's scale, Cohere's scale, Gemma's cap.
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "qwen3_next": {
        **LINEAR_ATTENTION,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "qwen3_5_text": LINEAR_ATTENTION,
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 0.1},  # far below the logits' spread, so that it matters
    "gemma3_text": {"final_logit_softcapping": 0.1},
    "gemma4_text": {"final_logit_softcapping": 0.1, "vocab_size_per_layer_input": 128},
    "mistral": {},
    "ministral3": {},
    "mixtral": EXPERTS,
    "phi": {"num_key_value_heads": 4},  # a head with a bias
    "phi3": {},
    "granite": {"logits_scaling": 8.0, "tie_word_embeddings": True},
    "granitemoe": {"logits_scaling": 6.0, **EXPERTS},
    "granitemoehybrid": {
        "logits_scaling": 6.0,
        **EXPERTS,
        "mamba_n_heads": 8,
        "mamba_d_state": 16,
        "mamba_chunk_size": 16,  # shorter than the rows; the default of 256 takes seconds
        "layer_types": ["mamba", "attention"],
    },
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25},
    "olmo2": {},
    "olmo3": {},
    "glm": {},
    "glm4": {},
    "smollm3": {},
    "deepseek_v3": LATENT,
    "gpt_oss": EXPERTS,
    "nemotron": {},
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 48},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
    "stablelm": {},
    "starcoder2": {},
}


def build(name: str, **changes):
    """A small model of that architecture with random weights, several times larger than at initialisation."""
    settings = {**SHAPE, **ARCHITECTURES[name], **changes}
    config = AutoConfig.for_model(name, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.normal_(std=0.2) if weight.dim() > 1 else weight.add_(0.1 * torch.randn_like(weight))
            if key.endswith("lm_head.bias"):
                weight.normal_()
    return model


def rows(seed: int = 1) -> tuple[list[list[int]], list[list[int]]]:
    """Conversations of several lengths; about a half of their tokens is supervised."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 128, (length,), generator=generator).tolist() for length in (31, 5, 18, 2, 40)]
    labels = [
        [IGNORE if (i * 7 + at) % 3 == 0 else token for at, token in enumerate(row)]
        for i, row in enumerate(ids)
    ]
    return ids, labels


def own_loss(model, ids: list[int], labels: list[int]) -> float:
    """transformers' own loss of one conversation, as a sum."""
    with torch.inference_mode():
        mean = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]), use_cache=False).loss
    return mean.item() * sum(label != IGNORE for label in labels[1:])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_is_transformers_own(name):
    model = build(name)
    ids, labels = rows()
    wanted = [own_loss(model, *row) for row in zip(ids, labels, strict=True)]
    assert conversation_nll(model, ids, labels, batch_tokens=100) == pytest.approx(wanted, rel=1e-5)
    assert head_of(model) is not None, "scored by its own forward: right, but slower"


@pytest.mark.parametrize(
    ("name", "left_out"), [("granite", "divisor"), ("cohere", "divisor"), ("gemma2", "cap")]
)
def test_a_head_that_is_not_understood_is_never_guessed(name, left_out, monkeypatch):
    """As if this project did not know what the architecture does to its logits."""
    model = build(name)
    neutral = {"divisor": 1.0, "cap": None}[left_out]
    whole = heads._assumed_head(model)
    ids, labels = rows()
    wanted = conversation_nll(model, ids, labels, batch_tokens=100)
    heads._checked.clear()
    monkeypatch.setattr(
        heads, "_assumed_head", lambda _: heads.Head(whole.backbone, whole.project, **{left_out: neutral})
    )
    assert head_of(model) is None
    assert conversation_nll(model, ids, labels, batch_tokens=100) == pytest.approx(wanted, rel=1e-5)
