"""Training rows that are too near to a held-out row.

Exact: the same conversation, or the same group. Near: Jaccard similarity of word 5-grams of at least 0.8, the
setting of Lee et al. (2022), "Deduplicating Training Data Makes Language Models Better", found with MinHash
LSH (datasketch) and then checked on the n-grams themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash
from datasketch import MinHash, MinHashLSH

NGRAM_WORDS = 5
MIN_JACCARD = 0.8
NUM_PERM = 64  # the candidates are checked exactly, so a coarse sketch is enough
# LSH misses a pair at the threshold itself with some probability; a lower one finds nearly all of those above ours.
LSH_THRESHOLD = 0.6


def text_of(row: dict[str, Any]) -> str:
    """All that was said, in lower case with single spaces: layout does not make a text new."""
    return " ".join(" ".join(message["content"] for message in row["messages"]).lower().split())


def ngrams(text: str) -> frozenset[int]:
    """64-bit hashes of the word 5-grams of a text (of the whole text, where it is shorter)."""
    words = text.split()
    grams = (
        " ".join(words[start : start + NGRAM_WORDS]) for start in range(max(1, len(words) - NGRAM_WORDS + 1))
    )
    return frozenset(xxhash.xxh3_64_intdigest(gram.encode()) for gram in grams)


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows to keep the training rows away from."""

    ids: frozenset[str]
    groups: frozenset[str]
    grams: Sequence[frozenset[int]]
    index: MinHashLSH

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]]) -> HeldOut:
        """Index rows that have `id`, `group` and `messages`."""
        ids, groups, grams = set(), set(), []
        index = MinHashLSH(threshold=LSH_THRESHOLD, num_perm=NUM_PERM)
        for row in rows:
            ids.add(row["id"])
            groups.add(row["group"])
            grams.append(ngrams(text_of(row)))
            index.insert(len(grams) - 1, _sketch(grams[-1]))
        return cls(frozenset(ids), frozenset(groups), grams, index)

    def near(self, row: dict[str, Any]) -> str | None:
        """Why a row must not be trained on: `exact`, `group`, `near`, or None."""
        if row["id"] in self.ids:
            return "exact"
        if row["group"] in self.groups:
            return "group"
        mine = ngrams(text_of(row))
        candidates = self.index.query(_sketch(mine))
        return (
            "near"
            if any(jaccard(mine, self.grams[candidate]) >= MIN_JACCARD for candidate in candidates)
            else None
        )


def _sketch(grams: frozenset[int]) -> MinHash:
    # The n-grams are hashes already; MinHash takes 32 bits of each.
    sketch = MinHash(num_perm=NUM_PERM, hashfunc=lambda gram: gram & 0xFFFFFFFF)
    sketch.update_batch(list(grams))
    return sketch
