"""A base model that always answers `zzz...` and adapters whose answers are their own letter, whatever is asked.

So that one wrong adapter in a hundred answers is seen. Embeddings carry a constant in dimension 0, which the head
reads as `z`; an adapter's rank-1 path through the last MLP adds a larger constant in its letter's dimension.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests import small

LETTERS = {"base": "z", "A": "a", "B": "b", "C": "c"}
DIMENSION = {"z": 0, "a": 1, "b": 2, "c": 3}


def write_project(root: Path) -> None:
    """models/base (with its GGUF), models/A, B, C and metrics/summary.json."""
    small.write_model(root / "models/base")
    _plant_base(root / "models/base")
    write_gguf(root / "models/base")
    for name in "ABC":
        write_adapter(root / "models" / name, root / "models/base", plant=LETTERS[name])
    summary = root / "metrics/summary.json"
    summary.parent.mkdir()
    summary.write_text(
        '{"base": {"loss": {"overall": 3.147}}, "B": {"loss": {"overall": 2.99078}}, "verdict": {"B_vs_A": "?"}}'
    )


def _load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def _tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _token(letter: str) -> int:
    return small.chatml_tokenizer().convert_tokens_to_ids(letter)


def _plant_base(folder: Path) -> None:
    import torch

    model = _load(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.01)[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for letter, dimension in DIMENSION.items():
            model.lm_head.weight[_token(letter), dimension] = 20.0
    model.save_pretrained(folder)


def speak_ascii(folder: Path) -> None:
    """Let a random model choose among lowercase letters alone: text that is no UTF-8 cannot be compared."""
    import torch

    model = _load(folder)
    letters = [_token(chr(code)) for code in range(ord("a"), ord("z") + 1)]
    with torch.no_grad():
        kept = model.lm_head.weight[letters].clone()
        model.lm_head.weight.zero_()
        model.lm_head.weight[letters] = kept
    model.save_pretrained(folder)


def speak_in_turn(folder: Path, text: str) -> None:
    """Let a model say the text's tokens (all different) in turn, beginning with the first behind the prompt."""
    import torch

    model, tokens = _load(folder), _tokenizer(folder).encode(text, add_special_tokens=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.model.embed_tokens.weight.zero_()[:, 0] = 1.0
        model.lm_head.weight[tokens[0], 0] = 1.0
        for dimension, (token, following) in enumerate(zip(tokens, [*tokens[1:], tokens[0]], strict=True), 1):
            model.model.embed_tokens.weight[token] = 0.0
            model.model.embed_tokens.weight[token, dimension] = 1.0
            model.lm_head.weight[following, dimension] = 1.0
    model.save_pretrained(folder)


def write_adapter(folder: Path, base: Path, plant: str | None = None, seed: int = 0) -> None:
    """A LoRA adapter in PEFT's format: planted to say one letter, or random on every linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    targets = ["gate_proj", "up_proj", "down_proj"] if plant else every
    model = get_peft_model(
        _load(base), LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name and plant:
                weight.zero_()
            elif "lora_B" in name:
                weight.normal_(std=0.2)
        if plant:
            mlp = model.base_model.model.model.layers[-1].mlp
            for part in (mlp.gate_proj, mlp.up_proj):
                part.lora_A["default"].weight[0, 0] = 1.0
                part.lora_B["default"].weight[0, 0] = 1.0
            mlp.down_proj.lora_A["default"].weight[0, 0] = 1.0
            mlp.down_proj.lora_B["default"].weight[DIMENSION[plant], 0] = 10.0
    model.save_pretrained(folder)


GGUF_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def write_gguf(folder: Path) -> None:
    """`base.gguf` next to a small model's safetensors, in float32."""
    import gguf

    from abctune.llm.gguf_families import interleaved

    model = _load(folder)
    config, tokenizer = model.config, _tokenizer(folder)
    writer = gguf.GGUFWriter(folder / "base.gguf", "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_token_list(tokens)
    special = set(tokenizer.added_tokens_encoder)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        writer.add_tensor(*_tensor(name, tensor.float().numpy(), heads, GGUF_NAMES, interleaved))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor(
    name: str, weight: np.ndarray, heads: dict[str, int], names: dict[str, str], interleaved
) -> tuple[str, np.ndarray]:
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name], weight
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    module = part.rsplit(".", 1)[-1]
    if module in heads:
        weight = np.ascontiguousarray(interleaved(weight, heads[module]))
    inner = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"} | names
    return f"blk.{layer}.{inner[module]}.weight", weight
