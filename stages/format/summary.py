"""What format counts while it streams: rows per source that add up, repairs and refusals by kind, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from abctune.core.records import FormatRecord, FormattedRows, Histogram, Lengths
from stages.format.render import Example

QUANTILES = (0.5, 0.9, 0.99, 1.0)
HISTOGRAM_BINS = 40


class Tally:
    """Counts of one variant: read = kept + duplicate + quarantined, per source."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self._sources: dict[str, Counter[str]] = {}
        self._reasons: dict[str, Counter[str]] = {}
        self._repairs: dict[str, Counter[str]] = {}
        self._lengths: list[int] = []  # before the cut; 8 bytes a row
        # Tokens by source, of rows of which the cut leaves nothing to learn.
        self.longest_refused: Counter[str] = Counter()

    def _of(self, source: str) -> Counter[str]:
        self._reasons.setdefault(source, Counter())
        self._repairs.setdefault(source, Counter())
        return self._sources.setdefault(source, Counter())

    def kept(self, source: str, examples: Sequence[Example], repairs: Sequence[str] = ()) -> None:
        """A conversation that became these examples."""
        self._of(source).update(
            read=1,
            kept=1,
            examples=len(examples),
            truncated=int(any(example.full_length > self.max_length for example in examples)),
            n_tokens=sum(len(example.input_ids) for example in examples),
            n_supervised=sum(example.n_supervised for example in examples),
        )
        self._repairs[source].update(repairs)
        self._lengths += [example.full_length for example in examples]

    def duplicate(self, source: str) -> None:
        """A conversation that has been seen."""
        self._of(source).update(read=1, duplicate=1)

    def quarantined(self, source: str, reason: str, n_tokens: int = 0) -> None:
        """A row that is refused; with its length where that is why."""
        self._of(source).update(read=1)
        self._reasons[source][reason] += 1
        self.longest_refused[source] = max(self.longest_refused[source], n_tokens)

    def record(self, template_hash: str) -> FormatRecord:
        """summary.json."""
        keys = ("read", "kept", "duplicate", "examples", "truncated", "n_tokens", "n_supervised")
        sources = {
            source: FormattedRows(
                **{key: counts[key] for key in keys},
                quarantined=dict(sorted(self._reasons[source].items())),
                repairs=dict(sorted(self._repairs[source].items())),
            )
            for source, counts in sorted(self._sources.items())
        }
        n_tokens = sum(source.n_tokens for source in sources.values())
        n_supervised = sum(source.n_supervised for source in sources.values())
        return FormatRecord(
            sources=sources,
            lengths=self._length_record(),
            supervised_share=round(n_supervised / max(1, n_tokens), 4),
            chat_template_sha256=template_hash,
        )

    def _length_record(self) -> Lengths:
        lengths = np.asarray(self._lengths or [0])
        counts, edges = np.histogram(lengths, bins=HISTOGRAM_BINS, range=(0, max(2 * self.max_length, 1)))
        counts[-1] += int((lengths > edges[-1]).sum())  # the last bar holds all that is longer
        quantiles = {str(q): int(np.quantile(lengths, q, method="inverted_cdf")) for q in QUANTILES}
        histogram = Histogram(edges=edges.tolist(), counts=counts.tolist())
        return Lengths(max_length=self.max_length, quantiles=quantiles, histogram=histogram)
