"""Models that read images as well as text, small, with random weights, in the layout in which they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests import small
from tests.llm.test_architectures import ARCHITECTURES, SHAPE

TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QWEN_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}  # of half a head's size
# {model_type: (what its language model's config has, its vision tower's)}
WRAPPERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({}, TOWER | {"image_size": 28, "patch_size": 14}),
    # A cap that does not make all large logits the same number.
    "gemma4": (
        ARCHITECTURES["gemma4_text"] | {"final_logit_softcapping": 5.0},
        TOWER | {"num_key_value_heads": 2, "head_dim": 16},
    ),
    "llama4": (
        ARCHITECTURES["llama4_text"],
        TOWER | {"image_size": 28, "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32},
    ),
    "mistral3": ({"model_type": "mistral"}, TOWER | {"image_size": 28, "patch_size": 14, "head_dim": 16}),
    "qwen2_5_vl": (
        {"rope_parameters": SECTIONS},
        {key: size for key, size in QWEN_TOWER.items() if key != "num_position_embeddings"}
        | {"fullatt_block_indexes": [0]},
    ),
    "qwen3_vl": (
        {"rope_parameters": SECTIONS | {"mrope_interleaved": True}},
        QWEN_TOWER | {"deepstack_visual_indexes": [0]},
    ),
    "qwen3_5": (ARCHITECTURES["qwen3_5_text"], QWEN_TOWER),
}  # fmt: skip


def write_wrapper(kind: str, folder: Path) -> None:
    """A model folder with the ChatML tokenizer; weights several times larger than at initialisation, so that answers differ."""
    tokenizer = small.chatml_tokenizer()
    text, vision = WRAPPERS[kind]
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    if "vocab_size_per_layer_input" in text:
        size["vocab_size_per_layer_input"] = len(tokenizer)
    config = AutoConfig.for_model(kind, text_config={**SHAPE, **text, **size}, vision_config=vision)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2) if weight.dim() > 1 else weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
