"""GPU memory during training: what a micro-batch needs, and what the machine should trade for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from abctune.llm.device import Capability

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# In addition to weights and activations: the logits of a chunk (Unsloth's loss takes up to 4 GiB), optimizer, fragments.
WORKING_BYTES = 5 * 2**30

# A 3B model's micro-batch of this many tokens runs for 0.25 s on an H100, about the time Python needs to launch its kernels.
BUSY_TOKENS = 6144


def supports_packing(capability: Capability, dtype: torch.dtype) -> bool:
    """Whether attention over packed conversations (varlen) is fast: FlashAttention, from sm_80 on, in 16 bit.

    Elsewhere a packed row costs attention over all of it, and rows of like length with little padding are faster.
    """
    return capability is not None and capability >= (8, 0) and dtype != torch.float32


def activation_bytes_per_token(config: PreTrainedConfig, checkpointing: bool) -> int:
    """What a Llama-like model keeps of one token for the backward pass, in 16 bit.

    A block keeps its two inputs, their norms, the query (twice: attention wants it in another order), the attention's
    output, keys and values (twice) and the MLP's two halves. With checkpointing only the block at work keeps them,
    the others their input.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    block = 7 * width + 4 * config.num_key_value_heads * _head_width(config) + 2 * config.intermediate_size
    return 2 * (block + layers * width if checkpointing else layers * block)


def _head_width(config: PreTrainedConfig) -> int:
    """Of an attention head; newer configs name it."""
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def tokens_that_fit(free: int, bytes_per_token: int, working: int = WORKING_BYTES) -> int:
    """Tokens of a micro-batch whose activations fit into `free` bytes; 0 or less where nothing does."""
    return (free - working) // bytes_per_token


def choose_sharding(asked: str, devices: int, weights: int, conversation: int, free: int) -> tuple[bool, str]:
    """Whether to split the base over the devices (FSDP2) instead of giving each a whole one; and why, in words.

    Args:
        asked: auto, fsdp or none, as params or accelerate's config say.
        devices: processes, of a GPU each.
        weights: bytes of the whole base.
        conversation: bytes that one conversation of full length takes in training.
        free: bytes of memory on the device that has least.
    """
    if asked != "auto":
        return asked == "fsdp", "as params or accelerate's config say"
    if devices == 1:
        return False, "there is one process"
    needed = weights + conversation + WORKING_BYTES
    gib = [f"{value / 2**30:.1f}" for value in (weights, needed - weights, free)]
    why = f"its weights take {gib[0]} GiB and training {gib[1]} more, and a GPU has {gib[2]} GiB free"
    return needed > free, why


def sharded_reserve(config: PreTrainedConfig) -> int:
    """Bytes that a sharded training needs in addition to its shards and activations, for the layers that are gathered.

    Two blocks (the next one comes while one is at work) and the embeddings and the head, in 16 bit; and 1 GiB.
    """
    width, layers = config.hidden_size, 2
    attention = 2 * width * _head_width(config) * (config.num_attention_heads + config.num_key_value_heads)
    block = attention + 3 * width * config.intermediate_size
    ends = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return 2 * (layers * block + ends) + 2**30


def sharded_bytes_per_token(config: PreTrainedConfig, checkpointing: bool) -> int:
    """What plain transformers keep of a token: the activations, and its logits in 16 bit and, twice, in 32."""
    return activation_bytes_per_token(config, checkpointing) + 10 * config.vocab_size


def choose_checkpointing(
    free: int, config: PreTrainedConfig, max_length: int, capability: Capability
) -> tuple[str, str]:
    """Whether to recompute activations (33 % more compute) to save memory, "unsloth" or "none"; and why, in words.

    Where one conversation of full length would not fit otherwise; and on a GPU that is done with what fits before
    Python has launched it.
    """
    fits = max(0, tokens_that_fit(free, activation_bytes_per_token(config, checkpointing=False)))
    fast = capability is not None and capability >= (8, 0)
    wanted = max(max_length, BUSY_TOKENS if fast else 0)
    why = f"{fits:,} tokens fit into {free / 2**30:.1f} GiB without, {wanted:,} are wanted at once"
    return ("unsloth" if fits < wanted else "none"), why


def worth_dequantizing(
    more: int, free: int, config: PreTrainedConfig, max_length: int, capability: Capability
) -> bool:
    """Whether 4-bit weights are worth `more` bytes to have them in 16 bit: if no checkpointing is needed for it.

    The numbers are the same; in 4 bits they are unpacked at every use, twice a step: 2 % of an H100's time.
    """
    return choose_checkpointing(free - more, config, max_length, capability)[0] == "none"


def needless_4bit(more: int, free: int, config: PreTrainedConfig, max_length: int) -> str | None:
    """A warning where a 16-bit base would fit the card, so that 4 bits save memory that nothing needs; else None.

    Args:
        more: how many more bytes the weights take in 16 bit than in 4.
        free: bytes of GPU memory that are left with the 4-bit base in it.
        config: the model's.
        max_length: tokens of the longest conversation, of which one has to fit with gradient checkpointing.
    """
    if tokens_that_fit(free - more, activation_bytes_per_token(config, checkpointing=True)) < max_length:
        return None
    return (
        f"load_in_4bit: true, though the base fits in 16 bit too ({more / 2**30:.1f} GiB more of {free / 2**30:.1f} GiB "
        "free). Adapters are served on the 16-bit base, and part of what one learns on a 4-bit base makes up for its "
        "rounding: on SmolLM2 it left 0.125 of a gain of 0.160 nats (docs/performance.md). "
        "Set train.load_in_4bit to false in params.yaml, unless 4 bit is what you study"
    )
