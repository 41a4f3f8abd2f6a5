"""Which rows of a source a variant gets, and in which order they are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def _rank(*parts: object) -> bytes:
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()


def draw(seed: int, source: str, rows: Sequence[int], count: int) -> list[int]:
    """The `count` rows whose hash of (seed, source, row) is lowest.

    Draws are nested: fewer rows of the same source are a subset of more, whatever else is in the mix.
    """
    return sorted(rows, key=lambda row: _rank(seed, source, row))[:count]


def training_order(seed: int, drawn: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Shuffle (source, row) pairs by a second hash.

    A second one, since the first would put the source that was drawn from most sparingly in front.
    """
    return sorted(drawn, key=lambda pair: _rank("order", seed, *pair))
