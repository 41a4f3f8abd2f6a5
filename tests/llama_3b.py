"""Llama-3.2-3B's shape, for tests of what a model of that size needs; no weights are made."""

from __future__ import annotations

from transformers import LlamaConfig

from benchmarks.train_gpu import SHAPE

LLAMA_3B = LlamaConfig(**SHAPE)
