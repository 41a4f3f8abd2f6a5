"""Greedy decoding over a key-value cache of fixed size, each step one CUDA graph: for many answers at once on a GPU.

A step of transformers' `generate` for an adapted 3B model takes the host 110 ms, to launch what an H100 computes in 15.
Recorded once as a graph, a step is one launch. torch.compile, which transformers offers for this, would make the same
graph after a minute's compilation; nothing is compiled here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from abctune.llm.heads import causal_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedModel

# What a model's generation_config may say without changing a greedy answer. Anything else (a repetition penalty, say)
# is left to transformers' generate.
HARMLESS = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "max_length",
    "use_cache",
    "transformers_version",
}
LOOK_EVERY = 16  # steps between two looks at whether all answers have ended: each waits for the GPU


def is_plain(model: PreTrainedModel) -> bool:
    """Whether `greedy` gives what `model.generate` gives: stock code, made for static caches, no extra processing."""
    from transformers.cache_utils import StaticCache, StaticLayer

    causal = causal_of(model)
    settings = causal.generation_config.to_diff_dict().items()
    own = {name for name, value in settings if value and not name.startswith("_")}
    return (
        type(causal).forward.__module__.startswith("transformers.")
        and causal._can_compile_fullgraph
        and own <= HARMLESS
        and all(type(layer) is StaticLayer for layer in StaticCache(causal.config, max_cache_len=1).layers)
        and is_whole(causal)
    )


def is_whole(model: torch.nn.Module) -> bool:
    """Whether all weights are on one device: neither split over processes (FSDP2) nor spread over several GPUs."""
    from torch.distributed.tensor import DTensor

    weights = list(model.parameters())
    return len({weight.device for weight in weights}) == 1 and not any(
        isinstance(w, DTensor) for w in weights
    )


@torch.inference_mode()
def greedy(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    max_new_tokens: int,
    stops: Iterable[int],
    pad: int,
) -> torch.Tensor:
    """The likeliest next token, again and again, until each row has a stop token.

    Args:
        model: in eval mode; `is_plain`.
        input_ids, attention_mask: prompts, (rows, width), padded in front.
        stops: token ids that end a row; what comes after them is `pad`.

    Returns:
        Token ids (rows, at most max_new_tokens).
    """
    steps = _Steps(model, input_ids, attention_mask, max_new_tokens, sorted(stops), pad)
    steps.first(input_ids, attention_mask)
    step = steps.next
    for number in range(1, max_new_tokens):
        if (
            number == 3 and input_ids.is_cuda
        ):  # two steps have run, so all kernels are compiled and all libraries started
            step = steps.recorded().replay
        if number % LOOK_EVERY == 0 and bool(steps.ended.all()):
            break
        step()
    return steps.chosen


def _one_query(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one token a row, (rows, heads, 1, size), the heads of a group as queries of their one key head.

    transformers' own repeats keys and values for each head of a group, which is most of what a step reads and writes.
    """
    rows, heads, _one, size = query.shape
    grouped = query.view(rows, key.shape[1], -1, size)
    found = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return found.reshape(rows, 1, heads, size), None


@contextmanager
def _grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model compute attention by `_one_query`, where it is torch's own that it uses."""
    from transformers import AttentionInterface

    config = model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa":
        AttentionInterface.register("one_query", _one_query)
        config._attn_implementation = "one_query"
    try:
        yield
    finally:
        config._attn_implementation = before


class _Steps:
    """The state of a batch's decoding, all of it in tensors that stay where they are."""

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        max_new_tokens: int,
        stops: list[int],
        pad: int,
    ) -> None:
        from transformers import StaticCache

        self._model = causal_of(model)
        self._pad = pad
        device, (rows, width) = input_ids.device, input_ids.shape
        length = width + max_new_tokens
        self._cache = StaticCache(self._model.config, max_cache_len=length)
        self._stops = torch.tensor(stops, device=device)
        self._columns = torch.arange(length, device=device)
        # Which places of the cache hold a token of the row, once they are filled: all but the padding.
        self._own = torch.ones(rows, length, dtype=torch.bool, device=device)
        self._own[:, :width] = attention_mask.bool()
        self._column = torch.tensor([width], device=device)  # where the newest token goes
        self._positions = attention_mask.sum(1, keepdim=True)  # of the newest token in its row
        self._newest = torch.full((rows, 1), pad, device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.chosen = torch.full((rows, max_new_tokens), pad, device=device)

    def first(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Read the prompts and choose each row's first token."""
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        self._choose(
            self._model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        )

    def next(self) -> None:
        """Read the newest token of each row and choose the one after it."""
        seen = self._own & (self._columns <= self._column)
        with _grouped_attention(self._model):
            logits = self._model(
                input_ids=self._newest,
                attention_mask=seen[:, None, None, :],
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        self._column += 1
        self._positions += 1
        self._choose(logits)

    def recorded(self) -> torch.cuda.CUDAGraph:
        """`next` captured as a CUDA graph; capturing runs nothing."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.next()
        return graph

    def _choose(self, logits: torch.Tensor) -> None:
        best = logits[:, -1].argmax(-1).masked_fill(self.ended, self._pad)
        self.ended |= torch.isin(best, self._stops)
        self._newest.copy_(best[:, None])
        self.chosen.index_copy_(1, self._number, best[:, None])
        self._number += 1
