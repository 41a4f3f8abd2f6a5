"""How a step's conversations are divided into micro-batches.

The recipe fixes which conversations make a step and that the loss is sum(nll) / supervised tokens of
all of them. How they are divided depends on the machine: every division gives the same gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from abctune.core.errors import UserError
from abctune.core.params import TrainParams
from abctune.llm.conversation import IGNORE
from abctune.llm.device import capability, free_bytes
from abctune.llm.likelihood import batches, right_padded
from stages.train.memory import activation_bytes_per_token, supports_packing, tokens_that_fit
from stages.train.plain import UNSLOTH

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALIGNMENT = 64  # tokens; a packed row of an odd length makes cuBLAS take its slow kernels (a tenth of a step)
WANTS = "it takes a GPU from sm_80 on, in 16 bit"
T = TypeVar("T")
Row = dict[str, np.ndarray]  # input_ids and labels of one conversation


def as_rows(examples: Sequence[dict[str, Sequence[int]]]) -> list[Row]:
    """The collator: a step's conversations as they are. Arrays, since accelerate would traverse lists of ints."""
    return [
        {name: np.asarray(example[name], dtype=np.int64) for name in ("input_ids", "labels")}
        for example in examples
    ]


def n_tokens(rows: Sequence[Row]) -> int:
    """Tokens of all rows."""
    return sum(len(row["input_ids"]) for row in rows)


def n_supervised(rows: Sequence[Row]) -> int:
    """Tokens with a loss; a conversation's first token has none, since nothing comes before it."""
    return sum(int((row["labels"][1:] != IGNORE).sum()) for row in rows)


def share(items: Sequence[T], sizes: Sequence[int], rank: int, world: int) -> list[T]:
    """A process's part of a step's items: parts are about equal, and depend on `sizes` alone."""
    if world == 1:
        return list(items)
    owners, loads = [0] * len(items), [0] * world
    for index in sorted(range(len(items)), key=lambda index: (-sizes[index], index)):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += sizes[index]
    return [item for item, owner in zip(items, owners, strict=True) if owner == rank]


def longest_step(conversations: int, max_length: int) -> list[Row]:
    """The largest possible step: its number of conversations, each of the maximum length and fully supervised."""
    ones = np.ones(max_length, dtype=np.int64)
    return [{"input_ids": ones, "labels": ones}] * conversations


@dataclass(frozen=True)
class MicroBatching:
    """tokens: the most that a micro-batch holds, padding included, except for a single longer conversation.

    packed: one row without padding, attention kept inside each conversation; else right-padded rows of like length.
    """

    tokens: int
    packed: bool
    back_offs: int = 0

    def micro_batches(self, rows: Sequence[Row]) -> list[dict[str, torch.Tensor]]:
        """The step's conversations as model inputs."""
        return [(packed if self.packed else padded)(part) for part in self._parts(rows)]

    def _parts(self, rows: Sequence[Row]) -> list[list[Row]]:
        lengths = [len(row["input_ids"]) for row in rows]
        parts = bins(lengths, self.tokens) if self.packed else batches(lengths, self.tokens)
        return [[rows[index] for index in part] for part in parts]

    def smaller(self, rows: Sequence[Row]) -> MicroBatching:
        """The cut to try after a step on `rows` did not fit: half the tokens of its largest micro-batch.

        Raises:
            UserError: that was one conversation.
        """
        sizes = [batch["input_ids"].numel() for batch in self.micro_batches(rows)]
        tokens, conversations = max(zip(sizes, map(len, self._parts(rows)), strict=True))
        if conversations == 1:
            raise UserError(
                f"out of GPU memory at micro-batch 1 ({tokens} tokens): in params.yaml's profiles.<profile>, "
                "set train.gradient_checkpointing: unsloth, train.load_in_4bit: true or a smaller data.max_length"
            )
        return replace(self, tokens=tokens // 2, back_offs=self.back_offs + 1)


def require_packing(recipe: TrainParams, model_type: str, fast: bool) -> None:
    """Refuse packed rows where they would be slow or wrong; what decides it is known before the base model is loaded.

    Args:
        fast: whether the machine's attention over packed rows is (stages.train.memory.supports_packing).

    Raises:
        UserError: the recipe asks for packed rows, which this model or this machine cannot have.
    """
    if recipe.packing is not True or can_pack(model_type, fast):
        return
    why = f"Unsloth has no kernels for {model_type}" if fast else WANTS
    raise UserError(f"params.yaml: {recipe.key('packing')}: true does not work here ({why}); set it to auto")


def can_pack(model_type: str, fast: bool) -> bool:
    """Whether conversations may share a row: Unsloth's kernels keep attention inside each, other models' do not."""
    return fast and model_type in UNSLOTH


def micro_batching_for(model: PreTrainedModel, recipe: TrainParams, max_length: int) -> MicroBatching:
    """The first micro-batching to try: on a GPU as much as its memory takes, on a CPU what the recipe calls a device's batch.

    Raises:
        UserError: the recipe asks for packed rows, which this model or this machine cannot have.
    """
    # A card of before sm_80 takes seconds for one conversation of full length: more at once saves nothing but the launch.
    fast = supports_packing(capability(), model.dtype)
    require_packing(recipe, model.config.model_type, fast)
    if not torch.cuda.is_available():
        return MicroBatching(recipe.per_device_train_batch_size * max_length, packed=False)
    per_token = activation_bytes_per_token(model.config.get_text_config(), model.is_gradient_checkpointing)
    tokens = tokens_that_fit(free_bytes(), per_token) if fast else max_length
    packed = can_pack(model.config.model_type, fast) and recipe.packing is not False
    return MicroBatching(max(tokens, max_length), packed)


def bins(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices in the fewest bins of at most `tokens`, about equally full; a longer conversation has its own."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for count in range(1, len(lengths) + 1):
        found: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for index in order:
            emptiest = filled.index(min(filled))
            found[emptiest].append(index)
            filled[emptiest] += lengths[index]
        if all(full <= tokens or len(part) == 1 for full, part in zip(filled, found, strict=True)):
            break
    return [part for part in found if part]


def padded(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Right-padded ids and labels, each (conversations, longest)."""
    ids, labels = right_padded([row["input_ids"] for row in rows], [row["labels"] for row in rows])
    return {"input_ids": ids, "labels": labels}


def packed(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """One row (1, tokens), positions starting again at each conversation, by which attention stays inside it.

    What fills it up to a multiple of ALIGNMENT has positions of its own too, and no labels.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    fill = -sum(lengths) % ALIGNMENT
    ids = [row["input_ids"] for row in rows] + [np.zeros(fill, dtype=np.int64)]
    labels = [np.concatenate([[IGNORE], row["labels"][1:]]) for row in rows] + [np.full(fill, IGNORE)]
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids))[None],
        "labels": torch.from_numpy(np.concatenate(labels))[None],
        "position_ids": torch.cat([torch.arange(length) for length in [*lengths, fill]])[None],
    }
