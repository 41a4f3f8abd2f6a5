"""What a model looks up in a table: each token's embedding and, in some (GPT-2), each position's. Beyond the table is an error.

On a GPU that error is one of the device, after which the process can compute nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import Embedding

from abctune.core.errors import UserError
from abctune.llm.heads import causal_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_entries(model: PreTrainedModel, largest_id: int, longest: int) -> None:
    """Refuse rows that the model has no entry for. A tokenizer may have more ids than the model, as long as they do not occur.

    Args:
        largest_id: of the tokens of all rows.
        longest: tokens of the longest row.

    Raises:
        UserError: a token has no embedding, or a position has none.
    """
    name = model.config.name_or_path or "the model"
    tokens = causal_of(model).get_input_embeddings().weight.shape[0]
    if largest_id >= tokens:
        raise UserError(
            f"{name}: token {largest_id} of the tokenizer has no embedding: the model has {tokens:,}; take the tokenizer"
            " that belongs to the model, or resize the model's embeddings to the tokenizer and save it again"
        )
    if (places := positions(model)) is not None and longest > places:
        raise UserError(
            f"{name} has {places:,} positions, fewer than the {longest:,} tokens that a text may have; set"
            f" profiles.<profile>.data.max_length to at most {places} in params.yaml, or take another model"
        )


def positions(model: PreTrainedModel) -> int | None:
    """How many positions the model has entries for; None where it computes them (rotary), as many as a text needs."""
    causal = causal_of(model)
    decoder, config = causal.get_decoder(), causal.config.get_text_config()
    # As transformers names them: wpe, position_embeddings, embed_positions; GPT-J's is a buffer of sines.
    sizes = [
        part.num_embeddings
        for name, part in decoder.named_modules()
        if isinstance(part, Embedding) and ("position" in name.rpartition(".")[2] or name.endswith("wpe"))
    ] + [len(table) for name, table in decoder.named_buffers() if name.endswith("embed_positions")]
    # OPT's table has two more, which no text reaches.
    return min(*sizes, getattr(config, "max_position_embeddings", sizes[0])) if sizes else None
