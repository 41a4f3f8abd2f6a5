"""Every architecture of abctune.llm.gguf_families: the file says what the model says, and the GGUF adapter what PEFT's does."""

from __future__ import annotations

import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from abctune.core.errors import UserError
from abctune.llm.gguf_families import FAMILIES
from abctune.llm.tokenizer import load_tokenizer
from app.engines.lora_gguf import convert
from stages.export import gguf_file
from stages.export.check import Agreement, LlamaCppFile, Prefix, compare, require_same_tokens
from stages.served.files import dequantised
from tests import small
from tests.export.conftest import tokenizer

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,
}
# What makes each one different from Llama, in values that matter at this size.
SETTINGS = {
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,  # as all of them are published
    },
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 20.0, "query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 128},
    "granite": {
        "logits_scaling": 2.0,
        "attention_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
    },
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5},
    "nemotron": {"hidden_act": "relu2"},
}
RSLORA = ("qwen2", "phi3")  # whose adapters are scaled by the rank's root
FORMATS = {"qwen3_moe": "q8_0"}  # stacked experts in blocks
IDS = [[5, 9, 200, 33, 8, 150, 77, 41, 6, 90, 12], [100 + n % 90 for n in range(60)]]


def build(kind: str, vocabulary: int):
    """A random model of four layers, whose norms and biases are no ones and zeros."""
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, num_hidden_layers=4, **SHAPE | SETTINGS.get(kind, {})
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def distances(model, found) -> Agreement:
    """The KL between a model and a file, over two rows."""
    places = [Prefix(ids, 7) for ids in IDS]
    with torch.inference_mode():
        wanted = [
            model(input_ids=torch.tensor([place.ids])).logits[0, -1].double().log_softmax(-1)
            for place in places
        ]
    return compare(places, wanted, found)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_file_and_an_adapter_of_every_family_say_what_transformers_and_peft_say(kind, tmp_path):
    own = tokenizer()
    model = build(kind, len(own))
    for folder in (tmp_path / "base", tmp_path / "tokenizer"):
        own.save_pretrained(folder)
    model.save_pretrained(tmp_path / "base")
    config = model.config.get_text_config().to_dict()
    file = tmp_path / "base.gguf"
    gguf_file.write_gguf(
        file, model.state_dict(), config, tmp_path / "tokenizer", FORMATS.get(kind, "f16"), "tiny", 1
    )
    server = LlamaCppFile(file, threads=1)
    require_same_tokens(server, load_tokenizer(tmp_path / "tokenizer"), file.name)
    found = distances(model, server.distributions(len(own)))
    print(f"{kind}: mean KL {found.mean_kl:.2g}")
    assert -1e-6 < found.mean_kl < (1e-4 if kind not in FORMATS else 1e-3)
    del server
    # What scores the file on the test rows (stage `served`) reads the same weights out of it.
    read = dequantised(GGUFReader(file), file.name, tmp_path / "base")
    for key, weight in model.state_dict().items():
        assert torch.dist(weight, read.state_dict()[key]) < 0.01 * weight.norm(), key

    torch.manual_seed(1)
    # Adapters on stacked experts have no form in a GGUF adapter: `convert` refuses them.
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"] if kind == "qwen3_moe" else "all-linear"
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, use_rslora=kind in RSLORA
    )
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(tmp_path / "A")
    convert(tmp_path / "A", tmp_path / "base", tmp_path / "A.gguf")
    adapter = LlamaCppFile(file, threads=1, lora=tmp_path / "A.gguf")
    effect = distances(model.eval(), adapter.distributions(len(own)))
    print(f"{kind} adapter: mean KL {effect.mean_kl:.2g}")
    assert effect.mean_kl < (1e-3 if kind not in FORMATS else 3e-3)
    with adapted.disable_adapter():
        assert distances(model, adapter.distributions(len(own))).mean_kl > 0.01, "the adapter does nothing"


def test_a_sentencepiece_tokenizer_and_a_dated_template_are_read_by_llama_cpp_as_by_transformers(tmp_path):
    """llama.cpp hands every template the day's date, and merges by scores where tokenizers merges by rank."""
    own = small.sentencepiece_tokenizer()
    own.chat_template = "{{ date_string }} " + own.chat_template
    own.save_pretrained(tmp_path)
    published = load_tokenizer(tmp_path)
    published.save_pretrained(tmp_path)
    model = build("llama", len(own))
    config = model.config.to_dict()
    file = tmp_path / "base.gguf"
    gguf_file.write_gguf(file, model.state_dict(), config, tmp_path, "f16", "tiny", 1)
    server = LlamaCppFile(file, threads=1)
    require_same_tokens(server, published, file.name)
    assert server.prompt([{"role": "user", "content": "a"}]).startswith("26 July 2024 <|user|>")
    published.chat_template = published.chat_template.replace("26 July 2024", "1 May 2026")
    with pytest.raises(UserError, match="another prompt of a question"):
        require_same_tokens(server, published, file.name)


def test_values_beyond_float16_s_range_are_told_with_the_format_that_holds_them(tmp_path):
    own = tokenizer()
    own.save_pretrained(tmp_path)
    model = build("llama", len(own))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight.mul_(1000)
            layer.mlp.up_proj.weight.mul_(1000)
    with torch.inference_mode():
        assert model(input_ids=torch.tensor([IDS[0]])).logits.isfinite().all()
    file = tmp_path / "B.f16.gguf"
    gguf_file.write_gguf(file, model.state_dict(), model.config.to_dict(), tmp_path, "f16", "tiny", 1)
    with pytest.raises(UserError, match=r"B\.f16\.gguf: .*65,504.* Take merged_16bit in export\.formats"):
        LlamaCppFile(file, threads=1).distributions(len(own))(IDS[0])
