"""A setting of the chat template under which rows that it refuses can be used: found by trying it on some of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from abctune.llm.tokenizer import own_template, self_contained, special_tokens
from stages.format.formatter import RecordReader, Usable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Variables by which published templates decide what they print of thoughts: Qwen, GLM and Command-R have the first,
# DeepSeek V3.1 and Granite the second, GLM-4.7 the third.
SWITCHES = ("enable_thinking", "thinking", "clear_thinking")
CHATML = "chatml-tools"  # a template of this project's, for models that have
CHATML_TOKENS = frozenset({"<|im_start|>", "<|im_end|>"})


def helpful_setting(reader: RecordReader, refused: Sequence[dict[str, Any]]) -> tuple[str, int] | None:
    """What to set below profiles.<profile>.model, as `template_args: {enable_thinking: false}`, and how many rows it makes usable.

    Args:
        refused: some records of data/mixed that the reader's template does not print as training needs them.

    Returns:
        The setting that makes the most of them usable, of several the first; None where none makes any.
    """
    best: tuple[str, int] | None = None
    for setting, template in _candidates(reader.tokenizer):
        found = reader.with_template(template).read(list(refused))
        usable = sum(isinstance(one, Usable) for one in found)
        if usable > (best[1] if best else 0):
            best = setting, usable
    return best


def _candidates(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    """Each setting with the template that it makes of the present one."""
    present: str = tokenizer.chat_template
    for name in SWITCHES:
        if re.search(rf"\b{name}\b", present):
            for value in (True, False):
                yield (
                    f"template_args: {{{name}: {str(value).lower()}}}",
                    self_contained(present, {name: value}),
                )
    if special_tokens(tokenizer).keys() >= CHATML_TOKENS:
        yield f"chat_template: {CHATML}", own_template(CHATML)
