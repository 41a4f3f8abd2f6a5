"""Llama-3.2-3B's shape, for tests of what a model of that size needs; no weights are made."""

from __future__ import annotations

from transformers import LlamaConfig

LLAMA_3B = LlamaConfig(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
)
