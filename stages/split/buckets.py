"""Which subset of the split a conversation falls into: a function of its group and the shares alone."""

from __future__ import annotations

import hashlib
from typing import Literal

from abctune.core.params import SplitParams

Subset = Literal["train", "val", "test"]
SUBSETS: tuple[Subset, ...] = ("train", "val", "test")


def bucket(group: str) -> float:
    """A group's place in [0, 1): the first 32 bits of its blake2b hash."""
    return int.from_bytes(hashlib.blake2b(group.encode()).digest()[:4], "big") / 2**32


def subset_of(group: str, split: SplitParams) -> Subset:
    """Neither the mix nor the order nor the seed matters, so what one variant holds out all hold out."""
    place = bucket(group)
    if place < split.test:
        return "test"
    return "val" if place < split.test + split.val else "train"
