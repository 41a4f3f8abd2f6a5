"""Llamas with random weights and a byte tokenizer of the true vocabulary's size: for timing, the shape is what counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_llama(folder: Path, weights: bool = True, **shape: Any) -> None:
    """Write a model folder as stage fetch-model leaves it.

    Args:
        weights: False leaves them out, for a benchmark that makes them on the device.
        shape: what LlamaConfig takes.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder, shape["vocab_size"])
    names = {"bos_token_id": "<|begin_of_text|>", "eos_token_id": "<|eot_id|>"}
    specials = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = LlamaConfig(**shape, pad_token_id=tokenizer.pad_token_id, **specials)
    config.architectures = ["LlamaForCausalLM"]
    if weights:
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            LlamaForCausalLM(config).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)
    else:
        config.save_pretrained(folder)
    (folder / "source.json").write_text('{"origin": "local", "path": "random", "license": "none"}')


def write_tokenizer(folder: Path, vocab_size: int) -> Any:
    """Write a byte tokenizer filled up to `vocab_size`, with Llama 3's chat template; return it before it is filled."""
    from tests import small

    tokenizer = small.llama_tokenizer()
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    written = json.loads(path.read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary |= {f"<{index}>": index for index in range(len(vocabulary), vocab_size)}
    path.write_text(json.dumps(written))
    return tokenizer
