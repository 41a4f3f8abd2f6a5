"""The GGUF conversion, on a very small GGUF file made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abctune.core.errors import UserError
from stages.fetch.gguf_model import build_tokenizer, convert, metadata_of, read, special_tokens

# As SmolLM2's: end of text and unknown, the turn marks, and tokens that no text uses.
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>"]
MERGES = ["Ġ Ġ", "h e", "l l", "he ll", "hell o", "u s", "us e", "use r"]
TEMPLATE = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
HIDDEN, HEADS, LAYERS, INNER, CONTEXT = 64, 2, 1, 96, 128


def bytes_as_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes with."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def write_gguf(path: Path) -> None:
    import gguf

    tokens = [*SPECIALS, *bytes_as_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)  # the end token, as SmolLM2's file says
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, shape in tensors(len(tokens)).items():
        values = np.random.default_rng(len(name)).normal(0, 0.2, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{name}.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.{name}_norm.weight": (HIDDEN,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{layer}.ffn_{name}.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down.weight"] = (HIDDEN, INNER)
    return shapes


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "base.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="module")
def base(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    convert(gguf_file, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def test_the_converted_model_computes_what_the_gguf_does(gguf_file: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    converted = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected, found = original(ids).logits, converted(ids).logits
    assert converted.dtype == torch.float32
    assert expected.std() > 0.1
    assert torch.allclose(found, expected, atol=5e-3)  # float16's rounding
    rounded = {name: weight.half().float() for name, weight in original.state_dict().items()}
    assert all(torch.equal(weight, rounded[name]) for name, weight in converted.state_dict().items())


def test_the_model_ends_and_pads_with_different_tokens(base: Path, tokenizer: Any) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.pad_token == "<empty_output>"
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((base / name).read_text())
        assert (settings["bos_token_id"], settings["eos_token_id"], settings["pad_token_id"]) == (
            1,
            2,
            tokenizer.pad_token_id,
        )


def test_the_saved_model_is_an_ordinary_one(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    assert "quantization_config" not in config
    assert "_name_or_path" not in config or "/" not in config["_name_or_path"]
    assert config["dtype"] == "float32"


def test_special_tokens_are_single_ids_and_survive_a_round_trip(tokenizer: Any) -> None:
    for index, token in enumerate(SPECIALS):
        assert tokenizer(token)["input_ids"] == [index]
    text = "hello <|im_start|>user\n  héllo 你好 🙂<|im_end|> don't"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_no_token_is_added_around_a_text(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("hello")["input_ids"]) == ["hello"]


def test_the_chat_template_is_the_ggufs_own(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert text == "<|im_start|>user\nhello<|im_end|>\n"


def test_digits_are_cut_off_before_white_space_is_merged(tokenizer: Any) -> None:
    """The `smollm` pre-tokenizer: without it, the two blanks before a digit would be split between them."""
    assert tokenizer.convert_ids_to_tokens(tokenizer("in  12")["input_ids"]) == ["i", "n", "ĠĠ", "1", "2"]


def test_the_context_length_is_the_ggufs(tokenizer: Any) -> None:
    assert tokenizer.model_max_length == CONTEXT


def test_a_tokenizer_of_another_kind_is_refused(gguf_file: Path) -> None:
    metadata = metadata_of(read(gguf_file)) | {"tokenizer.ggml.pre": "llama-bpe"}
    with pytest.raises(UserError, match="pre-tokenizer 'llama-bpe'"):
        build_tokenizer(metadata)


def test_a_vocabulary_without_a_spare_token_is_refused(gguf_file: Path) -> None:
    metadata = metadata_of(read(gguf_file))
    metadata["tokenizer.ggml.token_type"] = [3, 3, 3] + [1] * (len(metadata["tokenizer.ggml.tokens"]) - 3)
    with pytest.raises(UserError, match="no special token to spare"):
        special_tokens(metadata)


def test_a_gguf_without_a_tokenizers_parts_is_one_line(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = metadata_of(read(gguf_file))
    del metadata["tokenizer.ggml.merges"]
    monkeypatch.setattr("stages.fetch.gguf_model.metadata_of", lambda _: metadata)
    with pytest.raises(UserError, match=r"base.gguf lacks 'tokenizer.ggml.merges'"):
        convert(gguf_file, gguf_file.parent / "nowhere")
