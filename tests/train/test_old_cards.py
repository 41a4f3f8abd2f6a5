"""What a card of before sm_80 decides: a T4 has no bfloat16 and no fast attention over packed rows."""

import pytest
import torch

from abctune.core.params import load_params
from stages.train import micro_batching
from tests.llama_3b import LLAMA_3B

GIB = 2**30


class Model:
    """The 3B shape, without its weights."""

    config = LLAMA_3B
    dtype = torch.float16
    is_gradient_checkpointing = False


@pytest.fixture
def on_a_card(monkeypatch):
    def begin(capability, free):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(micro_batching, "capability", lambda: capability)
        monkeypatch.setattr(micro_batching, "free_bytes", lambda: free)
        return micro_batching.micro_batching_for(Model, load_params().train_of("B", "full"), 2048)

    return begin


def test_a_t4_begins_with_one_conversation_s_tokens_and_keeps_the_rest_of_its_memory_free(on_a_card):
    t4 = on_a_card((7, 5), 12.2 * GIB)
    assert (t4.tokens, t4.packed) == (2048, False)
    fast = on_a_card((9, 0), 12.2 * GIB)
    assert fast.packed
    assert fast.tokens > 3000, "where attention over packed rows is fast, all memory is used"
