"""How likely a model finds each conversation's supervised tokens: the sum of -log p, in nats.

A sum per conversation and nothing averaged, so neither the batch size nor the order can change a loss:
loss = sum(nll) / sum(n_supervised). transformers' eval loss is a mean of batch means, which both can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from abctune.llm.conversation import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_ROWS = 1024  # hidden states per language-model-head call: 1024 x 128,256 logits are 0.5 GB in float32


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like lengths, longest first, each at most batch_tokens wide x high (one row at least)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def conversation_nll(
    model: PreTrainedModel,
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    batch_tokens: int,
) -> list[float]:
    """-log p of each conversation's supervised tokens, summed over the conversation, in nats.

    Args:
        input_ids, labels: one sequence per conversation, of equal lengths; labels are -100 where not supervised.
        batch_tokens: tokens per forward pass, padding included. Bounds memory; does not change the result
            beyond floating-point rounding.
    """
    backbone, head = _backbone_and_head(model)
    nll = torch.zeros(len(input_ids), dtype=torch.float64, device=model.device)  # read once, at the end
    for batch in batches([len(ids) for ids in input_ids], batch_tokens):
        ids, wanted = right_padded([input_ids[i] for i in batch], [labels[i] for i in batch])
        hidden = backbone(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
        _add_nll(nll, torch.tensor(batch), hidden, head, targets=wanted[:, 1:])
    return nll.tolist()


def _backbone_and_head(model: PreTrainedModel) -> tuple[torch.nn.Module, torch.nn.Module]:
    # PEFT puts the LoRA layers into the base model's own modules, so its backbone is the adapted one.
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.get_decoder(), causal.get_output_embeddings()


def right_padded(
    input_ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels, each (conversations, longest).

    No attention mask is needed: causal attention never looks to the right, where the padding is, and no label is
    there. Without a mask the attention kernel is the fast one.
    """
    width = max(map(len, input_ids))
    ids = torch.zeros(len(input_ids), width, dtype=torch.long)
    wanted = torch.full_like(ids, IGNORE)
    for row, (tokens, targets) in enumerate(zip(input_ids, labels, strict=True)):
        ids[row, : len(tokens)] = torch.as_tensor(tokens)
        wanted[row, : len(targets)] = torch.as_tensor(targets)
    return ids, wanted


def _add_nll(
    nll: torch.Tensor,
    owners: torch.Tensor,
    hidden: torch.Tensor,
    head: torch.nn.Module,
    targets: torch.Tensor,
) -> None:
    """Add each row's supervised tokens to nll[owners[row]], a bounded number of logits in memory at a time.

    Column t of `hidden` predicts column t of `targets`, the token after it. `owners` and `targets` are on the CPU,
    where finding the supervised ones does not wait for the GPU.
    """
    rows, columns = (targets != IGNORE).nonzero(as_tuple=True)
    found = owners[rows], rows, columns, targets[rows, columns]
    parts = zip(*(places.to(hidden.device).split(HEAD_ROWS) for places in found), strict=True)
    for owner, row, column, target in parts:
        losses = cross_entropy(head(hidden[row, column]).float(), target, reduction="none")
        nll.index_add_(0, owner, losses.double())
