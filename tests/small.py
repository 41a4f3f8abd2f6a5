"""A model, a tokenizer and data so small that whole stages run in a test."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A ChatML template with places for tools, tool calls, tool results and reasoning, as Hermes and Qwen have them.
TOOLS_CHATML = (
    "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same, but past thoughts are dropped, as Qwen3's template does.
FORGETFUL_CHATML = TOOLS_CHATML.replace(
    "{% if message.reasoning_content %}", "{% if message.reasoning_content and loop.last %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>")
LLAMA_TOKENS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)


def byte_tokenizer(specials: tuple[str, ...], merges: tuple[str, ...] = (), **named: str):
    """A tokenizer of one token per byte behind the given special tokens: byte b of a text has id len(specials) + rank of b.

    Pairs of letters in `merges` are tokens too, behind the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet, *merges])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(pair[0], pair[1]) for pair in merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)


def chatml_tokenizer():
    tokenizer = byte_tokenizer(
        CHATML_TOKENS, eos_token="<|im_end|>", pad_token="<pad>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def llama_tokenizer(merged: bool = False):
    """Llama 3's special tokens and template over bytes; with one merge, without which llama.cpp loads no tokenizer."""
    tokenizer = byte_tokenizer(
        LLAMA_TOKENS,
        merges=("th",) if merged else (),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    tokenizer.chat_template = Path("abctune/llm/llama-3.1.jinja").read_text(encoding="utf-8")
    return tokenizer


def sentencepiece_tokenizer():
    """A tokenizer of Llama 2's kind, a token per byte or letter: a text begins with a space, written `▁`."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁a"]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[("▁", "a")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    return tokenizer


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_model(folder: Path, seed: int = 0, tokenizer=None, shape=SHAPE) -> None:
    """A random Llama, by default of two narrow layers with the ChatML byte tokenizer, as a folder for `from_pretrained`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or chatml_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **shape,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sentence(rng: random.Random, words: int = 5) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def chat_records(count: int, seed: int = 0) -> list[dict]:
    """ShareGPT conversations of two or four turns."""
    rng = random.Random(seed)
    return [
        {
            "conversations": [
                {"from": ("human", "gpt")[turn % 2], "value": sentence(rng)}
                for turn in range(rng.choice((2, 4)))
            ]
        }
        for _ in range(count)
    ]


def instruct_records(count: int, seed: int = 1) -> list[dict]:
    """Alpaca rows."""
    rng = random.Random(seed)
    return [{"instruction": sentence(rng), "input": "", "output": sentence(rng, 8)} for _ in range(count)]


def general_records(count: int, seed: int = 2) -> list[dict]:
    """Documents of running text."""
    rng = random.Random(seed)
    return [{"text": ". ".join(sentence(rng, 9) for _ in range(4))} for _ in range(count)]


def write_jsonl(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
