"""What format counts while it streams: rows per source that add up, lengths, and a preview for a person."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from abctune.llm.conversation import IGNORE
from stages.format.render import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUANTILES = (0.5, 0.9, 0.99, 1.0)
HISTOGRAM_BINS = 40
PREVIEW_ROWS = 3  # per source


class Tally:
    """Counts of one variant: read = kept + duplicate + quarantined, per source."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.sources: dict[str, Counter[str]] = {}
        self.reasons: dict[str, Counter[str]] = {}
        self.lengths: list[int] = []  # before the cut; 8 bytes a row

    def _of(self, source: str) -> Counter[str]:
        self.reasons.setdefault(source, Counter())
        return self.sources.setdefault(source, Counter())

    def kept(self, source: str, example: Example) -> None:
        self._of(source).update(
            read=1,
            kept=1,
            truncated=int(example.full_length > self.max_length),
            n_tokens=len(example.input_ids),
            n_supervised=example.n_supervised,
        )
        self.lengths.append(example.full_length)

    def duplicate(self, source: str) -> None:
        self._of(source).update(read=1, duplicate=1)

    def quarantined(self, source: str, reason: str) -> None:
        self._of(source).update(read=1, quarantined=1)
        self.reasons[source][reason] += 1

    def over_limit(self, max_quarantined: float) -> list[str]:
        """One line per source whose share of rejected rows is above the limit."""
        lines = []
        for source, counts in self.sources.items():
            share = counts["quarantined"] / counts["read"]
            if share > max_quarantined:
                reasons = ", ".join(f"{reason}: {n:,}" for reason, n in self.reasons[source].most_common(5))
                lines.append(
                    f"{counts['quarantined']:,} of {counts['read']:,} rows of {source} ({share:.1%}) are unusable ({reasons})"
                )
        return lines

    def summary(self) -> dict[str, Any]:
        keys = ("read", "kept", "duplicate", "truncated", "n_tokens", "n_supervised")
        sources = {
            source: {key: counts[key] for key in keys}
            | {"quarantined": dict(sorted(self.reasons[source].items()))}
            for source, counts in sorted(self.sources.items())
        }
        n_tokens = sum(source["n_tokens"] for source in sources.values())
        return {
            "sources": sources,
            "lengths": self._lengths(),
            "supervised_share": round(
                sum(source["n_supervised"] for source in sources.values()) / n_tokens, 4
            ),
        }

    def _lengths(self) -> dict[str, Any]:
        lengths = np.asarray(self.lengths)
        counts, edges = np.histogram(lengths, bins=HISTOGRAM_BINS, range=(0, max(2 * self.max_length, 1)))
        counts[-1] += int((lengths > edges[-1]).sum())  # the last bar holds all that is longer
        quantiles = {str(q): int(np.quantile(lengths, q, method="inverted_cdf")) for q in QUANTILES}
        return {
            "max_length": self.max_length,
            "quantiles": quantiles,
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }


class Preview:
    """The first rows of each source as text, supervised tokens between guillemets."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._shown: Counter[str] = Counter()
        self._blocks: list[str] = []

    def add(self, source: str, identity: str, example: Example) -> None:
        if self._shown[source] < PREVIEW_ROWS:
            self._shown[source] += 1
            self._blocks.append(f"=== {source} {identity}\n{mark_supervised(self._tokenizer, example)}\n")

    def text(self) -> str:
        head = "What the model is trained on. «Supervised tokens» stand between guillemets; all else is context.\n"
        return "\n".join([head, *self._blocks])


def mark_supervised(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The example's text with each supervised run between « and »."""
    text, run, supervised = "", [], False
    for token, label in [*zip(example.input_ids, example.labels, strict=True), (None, None)]:
        now = label is not None and label != IGNORE
        if run and (now != supervised or token is None):
            piece = tokenizer.decode(run, skip_special_tokens=False)
            text += f"«{piece}»" if supervised else piece
            run = []
        run, supervised = [*run, token], now
    return text
