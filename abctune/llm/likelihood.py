"""Sums over each conversation's supervised tokens: -log p in nats (the loss), and what other metrics add up.

Sums per conversation, never averages, so neither the batch size nor the order can change a loss:
loss = sum(nll) / sum(n_supervised). transformers' eval loss is a mean of batch means, which both can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from abctune.llm.conversation import IGNORE
from abctune.llm.heads import Head, causal_of, head_of
from abctune.llm.lookups import require_entries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_ROWS = 1024  # hidden states per language-model-head call: 1024 x 128,256 logits are 0.5 GB in float32

T = TypeVar("T")
R = TypeVar("R")

# float32 logits (n, vocabulary) and the tokens that came (n,) -> a number for each token (n,).
TokenMeasure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p of each token, in nats."""
    return cross_entropy(logits, targets, reduction="none")


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar lengths, longest first, each at most batch_tokens wide x high (one row at least)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


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
    sums: dict[str, list[float]] = conversation_sums(
        model, input_ids, labels, batch_tokens, {"nll": token_nll}
    )
    return sums["nll"]


def conversation_sums(
    model: PreTrainedModel,
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    batch_tokens: int,
    measures: Mapping[str, TokenMeasure],
) -> dict[str, list[float]]:
    """Each measure's sum over each conversation's supervised tokens, all from one forward pass.

    Args:
        input_ids, labels: as for `conversation_nll`.
        batch_tokens: as for `conversation_nll`; on a CPU the cores share it.
        measures: what to sum, by name.

    Returns:
        One float per conversation for each name.

    Raises:
        UserError: as require_entries.
    """
    if len(input_ids):
        require_entries(model, max(max(ids, default=0) for ids in input_ids), max(map(len, input_ids)))
    head = head_of(model)
    if head is None:  # all logits of a batch are in memory at once
        batch_tokens = min(batch_tokens, HEAD_ROWS)
    cores = cores_for(model)

    @torch.inference_mode()
    def sums_of(batch: list[int]) -> torch.Tensor:
        """Each measure's sums over the conversations of one batch: float64 (measures, batch)."""
        ids, wanted = right_padded([input_ids[i] for i in batch], [labels[i] for i in batch])
        ids = ids.to(model.device)
        states = head.hidden(ids) if head else causal_of(model)(input_ids=ids, use_cache=False).logits
        return _sums(states, head, wanted[:, 1:], tuple(measures.values()), max(1, HEAD_ROWS // cores))

    parts = list(batches([len(ids) for ids in input_ids], max(1, batch_tokens // cores)))
    found = on_cores(sums_of, parts, cores)
    none = torch.zeros(len(measures), 0, dtype=torch.float64, device=model.device)
    sums = np.empty((len(measures), len(input_ids)))
    columns = [index for part in parts for index in part]
    # Read once, at the end. The states of a model on several GPUs, and so its sums, are on the last of them.
    sums[:, columns] = torch.cat([none, *(part.to(none.device) for part in found)], dim=1).cpu().numpy()
    return dict(zip(measures, sums.tolist(), strict=True))


def cores_for(model: PreTrainedModel) -> int:
    """How many batches go through the model at a time: on a CPU one on each core that torch may use.

    Autocast is the calling thread's alone, so with it there is one.
    """
    if model.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return 1
    cores: int = torch.get_num_threads()
    return cores


def on_cores(work: Callable[[T], R], parts: Sequence[T], cores: int) -> list[R]:
    """The work's result for each part, in order, each on one core where there are enough: a batch gains little from more."""
    if cores == 1:
        return [work(part) for part in parts]
    threads = max(1, cores // max(1, len(parts)))
    try:
        with ThreadPoolExecutor(cores, initializer=lambda: torch.set_num_threads(threads)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(cores)  # what torch reports is the last number that any thread set


def right_padded(
    input_ids: Sequence[Sequence[int] | np.ndarray], labels: Sequence[Sequence[int] | np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels, each (conversations, longest).

    No attention mask is needed: causal attention never looks to the right, where the padding is, and no label is
    there. Without a mask the attention kernel is the fast one.
    """
    ids, wanted = ([torch.as_tensor(row, dtype=torch.long) for row in rows] for rows in (input_ids, labels))
    return (
        pad_sequence(ids, batch_first=True),
        pad_sequence(wanted, batch_first=True, padding_value=IGNORE),
    )


def _sums(
    states: torch.Tensor,
    head: Head | None,
    targets: torch.Tensor,
    measures: Sequence[TokenMeasure],
    head_rows: int,
) -> torch.Tensor:
    """Each measure's sum over each row's supervised tokens, (measures, rows), the logits of `head_rows` tokens in memory at a time.

    Column t of `states` predicts column t of `targets`, the token after it. `head` makes logits of states; without one
    they are logits already. `targets` are on the CPU, where finding the supervised ones does not wait for the GPU.
    """
    sums = torch.zeros(len(measures), len(targets), dtype=torch.float64, device=states.device)
    rows, columns = (targets != IGNORE).nonzero(as_tuple=True)
    found = rows, columns, targets[rows, columns]
    for row, column, target in zip(
        *(places.to(states.device).split(head_rows) for places in found), strict=True
    ):
        chosen = states[row, column]
        logits = (head.logits(chosen) if head else chosen).float()
        target = target.to(
            logits.device
        )  # a model on several GPUs has its head on one and its states on another
        for total, measure in zip(sums, measures, strict=True):
            total.index_add_(0, row, measure(logits, target).double().to(total.device))
    return sums
