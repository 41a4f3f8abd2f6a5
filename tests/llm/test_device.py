"""What a machine's capability and memory decide, without the machine."""

import pytest
import torch

from abctune.llm.device import dtype_for
from stages.train.memory import (
    activation_bytes_per_token,
    choose_checkpointing,
    needless_4bit,
    supports_packing,
    tokens_that_fit,
    worth_dequantizing,
)
from tests.llama_3b import LLAMA_3B

CPU, T4, A100, H100 = None, (7, 5), (8, 0), (9, 0)
GIB = 2**30


@pytest.mark.parametrize(
    ("capability", "dtype", "packed"),
    [
        (CPU, torch.float32, False),
        (T4, torch.float16, False),
        (A100, torch.bfloat16, True),
        (H100, torch.bfloat16, True),
    ],
)
def test_number_format_and_attention_follow_from_the_capability(capability, dtype, packed):
    assert dtype_for("auto", capability) == dtype
    assert supports_packing(capability, dtype) is packed


@pytest.mark.parametrize("capability", [CPU, T4, A100, H100])
def test_a_number_format_that_is_asked_for_is_taken(capability):
    assert dtype_for("float32", capability) == torch.float32
    assert supports_packing(capability, torch.float32) is False


def test_a_token_of_the_3b_model_keeps_what_was_measured():
    """28.35 GiB reserved on an H100 with up to 13,119 tokens at once, of which 2.6 GiB are weights."""
    kept = activation_bytes_per_token(LLAMA_3B, checkpointing=False)
    assert kept * 13_119 == pytest.approx((28.35 - 2.6) * GIB, rel=0.15)
    assert activation_bytes_per_token(LLAMA_3B, checkpointing=True) < kept / 5


@pytest.mark.parametrize(
    ("capability", "free_gib", "needed"),
    [
        (H100, 75, False),
        (H100, 13, True),  # 16 GiB: faster than Python launches what fits
        (A100, 36, False),
        (T4, 12, False),  # slow enough to be kept busy by 3,000 tokens
        (T4, 8, True),  # one conversation of full length does not fit
    ],
)
def test_checkpointing_is_only_where_memory_needs_it(capability, free_gib, needed):
    used, why = choose_checkpointing(free_gib * GIB, LLAMA_3B, 2048, capability)
    assert used == ("unsloth" if needed else "none")
    assert f"{free_gib}.0 GiB" in why


def test_nothing_fits_where_there_is_less_than_the_work_needs():
    assert tokens_that_fit(GIB, 1000) <= 0


@pytest.mark.parametrize(
    ("capability", "free_gib", "once"),
    [
        (H100, 75, True),
        (A100, 36, True),
        (H100, 21, False),  # 24 GB: the activations need it
        (H100, 13, False),  # checkpointing already
        (T4, 12, False),
    ],
)
def test_4_bit_weights_are_unpacked_once_where_activations_do_not_need_the_memory(capability, free_gib, once):
    more = int(3.9 * GIB)  # of Llama-3.2-3B's
    assert worth_dequantizing(more, free_gib * GIB, LLAMA_3B, 2048, capability) is once


@pytest.mark.parametrize(
    ("free_gib", "warned"),
    [
        (75, True),  # an H100
        (21, True),  # 24 GB
        (12, True),  # a T4 with the 4-bit base in it: 8 GiB are left
        (8, False),
    ],
)
def test_4_bit_weights_are_warned_about_where_16_bit_ones_would_fit(free_gib, warned):
    more = int(3.9 * GIB)  # of Llama-3.2-3B's
    warning = needless_4bit(more, free_gib * GIB, LLAMA_3B, 2048)
    assert (warning is not None) is warned
    if warning:
        assert f"3.9 GiB more of {free_gib}.0 GiB free" in warning and "train.load_in_4bit" in warning
