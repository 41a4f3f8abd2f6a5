"""Training rows that are too near to a held-out row.

Exact: the same conversation, or the same group. Near: Jaccard similarity of 5-grams of at least `split.near`, found with
MinHash LSH and then checked on the n-grams themselves. 0.8 of word 5-grams is the setting of Lee et al. (2022),
"Deduplicating Training Data Makes Language Models Better". What many rows share (a system prompt, a fixed instruction, a
boilerplate opening) is left out of the comparison: it says nothing about whether two rows are the same. Scripts that are
written without spaces are compared by characters.

The sketches and the shape of the index are datasketch's; the index itself is arrays (`Bands`), since its own took 7 kB
a row, so that 570,000 held-out rows were 4 GiB in each process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

NGRAM = 5  # words, or characters of a script without spaces
# A text that so few held-out rows share is not boilerplate, whatever share of them it is: copies come in small numbers.
MIN_COMMON_ROWS = 10
# So many rows of each source show what its rows share, where few of them are held out: 200 own rows, 5 % held out, are ten.
SAMPLE_ROWS = 500
NUM_PERM = 64  # the candidates are checked exactly, so a coarse sketch is enough
# LSH misses a pair at the threshold itself with some probability; a lower one finds nearly all of those above ours.
LSH_SLACK = 0.75
# Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters.
WITHOUT_SPACES = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
TOKEN = re.compile(f"[{WITHOUT_SPACES}]|[^\\s{WITHOUT_SPACES}]+")


Grams = NDArray[np.uint64]  # the n-grams of one row, each once: 8 bytes where a set takes 70


def as_array(grams: frozenset[int]) -> Grams:
    """N-grams in the form in which they are kept."""
    return np.fromiter(grams, dtype=np.uint64, count=len(grams))


def text_of(row: dict[str, Any]) -> str:
    """All that was said, in lower case: layout does not make a text new."""
    return "\n".join(message["content"] for message in row["messages"]).lower()


def ngrams(text: str) -> frozenset[int]:
    """64-bit hashes of the 5-grams of a text's words and characters (of the whole text, where it is shorter)."""
    tokens = text.split() if text.isascii() else TOKEN.findall(text)
    grams = (" ".join(tokens[start : start + NGRAM]) for start in range(max(1, len(tokens) - NGRAM + 1)))
    return frozenset(xxhash.xxh3_64_intdigest(gram.encode()) for gram in grams)


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Share of the n-grams of either that both have; 0 of nothing."""
    return len(one & other) / max(1, len(one | other))


def common_ngrams(rows: Sequence[Grams], share: float) -> frozenset[int]:
    """The n-grams that more than a share of the rows have, and more than MIN_COMMON_ROWS of them."""
    limit = max(MIN_COMMON_ROWS, share * len(rows))
    if len(rows) <= limit:
        return frozenset()
    grams, counts = np.unique(np.concatenate(rows), return_counts=True)
    return frozenset(grams[counts > limit].tolist())


class Bands:
    """The buckets of MinHash LSH: two rows are near where all hashes of one of their sketches' bands are equal."""

    def __init__(self, sketches: Iterable[MinHash], threshold: float) -> None:
        """Index sketches, which are numbered from 0.

        Args:
            threshold: Jaccard similarity from which datasketch's choice of bands finds a pair.
        """
        shape = MinHashLSH(threshold=threshold, num_perm=NUM_PERM)
        self._hashes_of_band = shape.r
        self._n_bands = shape.b
        keys = np.fromiter(
            (key for sketch in sketches for key in self._keys(sketch)), dtype=np.uint64
        ).reshape(-1, self._n_bands)
        order = np.argsort(keys, axis=0)
        self._order = order.astype(np.uint32).T  # (bands, rows)
        self._keys_sorted = np.take_along_axis(keys, order, axis=0).T

    def _keys(self, sketch: MinHash) -> Iterator[int]:
        for band in range(self._n_bands):
            hashes = sketch.hashvalues[band * self._hashes_of_band : (band + 1) * self._hashes_of_band]
            yield xxhash.xxh3_64_intdigest(hashes.tobytes())

    def near(self, sketch: MinHash) -> set[int]:
        """Numbers of the rows that share a band with the sketch: candidates for an exact comparison."""
        found: set[int] = set()
        for keys, order, key in zip(self._keys_sorted, self._order, self._keys(sketch), strict=True):
            first, last = (
                np.searchsorted(keys, np.uint64(key), "left"),
                np.searchsorted(keys, np.uint64(key), "right"),
            )
            found.update(order[first:last].tolist())
        return found


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows to keep the training rows away from."""

    ids: frozenset[str]
    groups: frozenset[str]
    grams: Sequence[Grams]  # of each row that has any without the common ones
    common: frozenset[int]
    threshold: float
    index: Bands

    @classmethod
    def of(
        cls,
        rows: Iterable[dict[str, Any]],
        near: float = 0.8,
        common: float = 0.1,
        is_held_out: Callable[[dict[str, Any]], bool] = lambda row: True,
    ) -> HeldOut:
        """Index rows that have `id`, `group`, `messages` and, where there are several, `source`.

        Args:
            near: Jaccard similarity from which a row counts as a copy.
            common: n-grams of more than this share of the held-out rows, or of a source's first rows, are left out.
            is_held_out: of which rows; the others only show what a source's rows share.
        """
        ids, groups, everything = set(), set(), []
        samples: dict[str, list[Grams]] = {}
        for row in rows:
            sample = samples.setdefault(row.get("source", ""), [])
            held = is_held_out(row)
            if not held and len(sample) == SAMPLE_ROWS:
                continue
            grams_of_row = as_array(ngrams(text_of(row)))
            if held:
                ids.add(row["id"])
                groups.add(row["group"])
                everything.append(grams_of_row)
            if len(sample) < SAMPLE_ROWS:
                sample.append(grams_of_row)
        shared = frozenset().union(*(common_ngrams(one, common) for one in (everything, *samples.values())))
        left_out = as_array(shared)
        grams = [rest for row in everything if len(rest := row[~np.isin(row, left_out)])]
        index = Bands((_sketch(row.tolist()) for row in grams), LSH_SLACK * near)
        return cls(frozenset(ids), frozenset(groups), grams, shared, near, index)

    def near(self, row: dict[str, Any]) -> str | None:
        """Why a row must not be trained on: `exact`, `group`, `near`, or None."""
        if row["id"] in self.ids:
            return "exact"
        if row["group"] in self.groups:
            return "group"
        mine = ngrams(text_of(row)) - self.common
        if not mine:
            return None
        candidates = (frozenset(self.grams[number].tolist()) for number in self.index.near(_sketch(mine)))
        return "near" if any(jaccard(mine, one) >= self.threshold for one in candidates) else None


def _sketch(grams: Iterable[int]) -> MinHash:
    # The n-grams are hashes already; MinHash takes 32 bits of each.
    sketch = MinHash(num_perm=NUM_PERM, hashfunc=lambda gram: gram & 0xFFFFFFFF)
    sketch.update_batch(list(grams))
    return sketch
