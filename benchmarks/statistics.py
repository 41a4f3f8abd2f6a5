"""Time and memory of the comparison's bootstrap: `python -m benchmarks.statistics`.

The size to stay below 5 s at: 10,000 resamples, 5 models (so 10 pairs), 3 sets, 5,000 conversations.
"""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np

from abctune.core.provenance import peak_rss_gib
from abctune.study.statistics import RESAMPLES, bootstrap, cluster_sums

CONVERSATIONS, MODELS = 5000, 5


def main() -> None:
    rng = np.random.default_rng(0)
    tokens = np.maximum(1, rng.lognormal(5, 0.8, CONVERSATIONS).astype(int)).astype(float)
    nll = tokens[:, None] * (2 + 0.4 * rng.standard_normal((CONVERSATIONS, MODELS)))
    pairs = [nll[:, i] - nll[:, j] for i, j in combinations(range(MODELS), 2)]
    values = np.column_stack([nll, *pairs])
    groups = np.arange(CONVERSATIONS)
    halves = [slice(None, CONVERSATIONS // 2), slice(CONVERSATIONS // 2, None)]
    sources = [cluster_sums(groups[half], tokens[half], values[half]) for half in halves]
    before, started = peak_rss_gib(), time.perf_counter()
    for strata in (sources, sources[:1], sources[1:]):
        bootstrap(strata, rng)
    seconds = time.perf_counter() - started
    print(
        f"{RESAMPLES:,} resamples x {MODELS} models and {len(pairs)} pairs x 3 sets over {CONVERSATIONS:,} "
        f"conversations: {seconds:.2f} s, {peak_rss_gib() - before:.2f} GiB more memory"
    )


if __name__ == "__main__":
    main()
