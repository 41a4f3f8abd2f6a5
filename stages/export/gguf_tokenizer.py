"""A tokenizer.json as GGUF's key-values: byte-level BPE (GPT-2's kind) and SentencePiece's BPE (Llama 2's, Gemma's)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf

from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.llm.tokenizer import DATE_STRING

if TYPE_CHECKING:
    from collections.abc import Iterator

# How a tokenizer cuts text before merging, as tokenizers writes it and as llama.cpp calls it.
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2_WORDS = LLAMA_3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT_4O_WORDS = _CASED % (_ENDINGS, _ENDINGS) + r"|\p{N}{1,3}" + _REST
TEKKEN_WORDS = _CASED % ("", "") + r"|\p{N}" + _REST
DEEPSEEK_WORDS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
BYTES = ("ByteLevel", False)
PRE_TOKENIZERS = {
    "gpt-2": [("ByteLevel", True)],
    "smollm": [("Digits", True), ("ByteLevel", True)],  # also StarCoder's, Granite's and Command-R's
    "llama-bpe": [("Split", LLAMA_3_WORDS), BYTES],
    "qwen2": [("Split", QWEN_2_WORDS), BYTES],
    "gpt-4o": [("Split", GPT_4O_WORDS), BYTES],
    "tekken": [("Split", TEKKEN_WORDS), BYTES],
    "deepseek-v3": [*(("Split", words) for words in DEEPSEEK_WORDS), BYTES],
}
SPACE = "▁"  # how SentencePiece writes a space


def add_tokenizer(writer: gguf.GGUFWriter, size: int, folder: Path) -> None:
    """Write the tokenizer of `folder` with its chat template.

    Args:
        size: rows of the model's token matrix, which may be more than the tokenizer has tokens.

    Raises:
        UserError: the tokenizer is of a kind that is not handled.
    """
    tokenizer = read_json(folder / "tokenizer.json", made_by=f"train@{folder.name}")
    sentencepiece = is_sentencepiece(tokenizer)
    tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    kinds = {index: _kind(token, tokenizer, sentencepiece) for index, token in tokens.items()}
    for added in tokenizer["added_tokens"]:
        index, text = added["id"], added["content"]
        # llama.cpp looks for such a token in the text as it was before SentencePiece's spaces.
        tokens[index] = text.replace(SPACE, " ") if sentencepiece and not added["special"] else text
        if kinds.get(index) != gguf.TokenType.UNKNOWN:
            kinds[index] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default" if sentencepiece else pre_tokenizer(tokenizer))
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([kinds.get(index, gguf.TokenType.UNUSED) for index in range(size)])
    if sentencepiece:
        scores = _scores(tokenizer)
        writer.add_token_scores([scores.get(tokens.get(index), -1e6) for index in range(size)])
        writer.add_add_space_prefix(_prepends_space(tokenizer))
    special = gguf.SpecialVocab(folder, load_merges=not sentencepiece, n_vocab=size)
    special.add_special_token.setdefault("bos", False)  # otherwise llama.cpp decides by the kind of tokenizer
    special.chat_template = with_date(special.chat_template)
    special.add_to_gguf(writer, quiet=True)


def with_date(template: Any) -> Any:
    """The template with the pinned date, whatever date it is handed: llama.cpp hands every template the day's."""
    if not isinstance(template, str) or "date_string" not in template:
        return template
    return f"{{%- set date_string = '{DATE_STRING}' -%}}{template}"


def is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """Whether this tokenizer.json was made of a SentencePiece model with byte fallback."""
    return bool(tokenizer["model"].get("byte_fallback"))


def _kind(token: str, tokenizer: dict[str, Any], sentencepiece: bool) -> gguf.TokenType:
    if sentencepiece and token == tokenizer["model"]["unk_token"]:
        return gguf.TokenType.UNKNOWN
    if sentencepiece and len(token) == 6 and token.startswith("<0x"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def _scores(tokenizer: dict[str, Any]) -> dict[str | None, float]:
    """A score per token that makes llama.cpp merge in the order of the merges: the first pair that makes a token counts."""
    scores: dict[str | None, float] = {}
    for rank, merge in enumerate(tokenizer["model"]["merges"]):
        scores.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), -float(rank))
    return scores


def _prepends_space(tokenizer: dict[str, Any]) -> bool:
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in (*_steps(tokenizer["normalizer"]), *_steps(tokenizer["pre_tokenizer"]))
    )


def _steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The members of a normalizer or pre-tokenizer, in order."""
    if part:
        yield from part.get("normalizers", part.get("pretokenizers", [part]))


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for how this `tokenizer.json` cuts text.

    Raises:
        UserError: it is none of the ways known here; a wrong name would give other tokens than in training.
    """
    steps = [
        (
            step["type"],
            step.get("pattern", {}).get("Regex") or step.get("individual_digits") or step.get("use_regex"),
        )
        for step in _steps(tokenizer["pre_tokenizer"])
    ]
    # llama.cpp does not compose characters (NFC); text mostly is composed already.
    normal = all(step["type"] == "NFC" for step in _steps(tokenizer["normalizer"]))
    for name, wanted in PRE_TOKENIZERS.items():
        if steps == wanted and tokenizer["model"]["type"] == "BPE" and normal:
            # Of the same words: with Llama 3's name, a word that is a token is one whatever the merges say.
            whole_words = tokenizer["model"].get("ignore_merges")
            return "smaug-bpe" if name == "llama-bpe" and not whole_words else name
    raise UserError(
        f"no GGUF is written for this tokenizer (its pre_tokenizer is none of {', '.join(PRE_TOKENIZERS)}); put"
        " merged_16bit into export.formats and convert it with llama.cpp's convert_hf_to_gguf.py"
    )
