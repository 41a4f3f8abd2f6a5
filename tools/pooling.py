"""Studies that differ in `seed` and in nothing else, pooled: each drew rows of its own, for training and for testing.

Within a study its replicates are averaged; between studies the differences are compared as replicates are, with the
variance between them moderated and the test rows that studies share counted once. docs/statistics.md ("Several
seeds") explains it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abctune.core.params import BASE
from abctune.study import statistics
from abctune.study.recipes import RecipeComparison, TestRows, difference_of, paired, with_verdicts
from abctune.study.variances import Parts, parts_of, priors_of

Floats = NDArray[np.float64]
Strings = NDArray[np.str_]


@dataclass(frozen=True)
class Scores:
    """One study's test rows, and every model's sums on them (replicates x rows)."""

    rows: TestRows
    sums: Mapping[str, Floats]


@dataclass(frozen=True)
class _OneStudy:
    """A difference on a set in one study."""

    value: float
    clusters: Strings
    influences: Floats  # each cluster's influence on the value
    rows_df: float
    share: float  # sum of the sources' squared shares of the weight
    n: int


def pool_studies(
    studies: Sequence[Scores],
    pairs: Sequence[tuple[str, str]],
    sets: Mapping[str, Sequence[str]],
    *,
    margin: float,
    seed: int,
    fixed: Collection[str] = (BASE,),
    resamples: int = statistics.RESAMPLES,
) -> RecipeComparison:
    """Differences of every pair on every set, for other seeds and other rows; `by_replicate` is by study.

    Args:
        studies: at least two, of the same models.
        pairs: (model, reference), the differences to test.
        sets: name -> the sources it is made of.
        margin: differences below this count as none.
        seed: the resampling's draws follow from it.
        fixed: models that were not trained.
        resamples: of groups, for the rows' share of the interval.
    """
    parts = {}
    for index, (on, sources) in enumerate(sets.items()):
        rng = np.random.default_rng([seed, index])
        for pair in pairs:
            found = [_one_study(scores, pair, sources, fixed, rng, resamples) for scores in studies]
            parts[on, *pair] = _pooled(found, trained=sum(name not in fixed for name in pair))
    trained = [model for model in studies[0].sums if model not in fixed]
    n_sources = len({source for sources in sets.values() for source in sources})
    by_set = {on: [parts[on, *pair] for pair in pairs] for on in sets}
    priors = priors_of(by_set, [len(studies)] * len(trained), n_sources)
    differences = [
        difference_of(
            *pair, on, parts[on, *pair], priors[on], trained=sum(name not in fixed for name in pair)
        )
        for on in sets
        for pair in pairs
    ]
    return RecipeComparison([], with_verdicts(differences, margin, lower_is_better=True), margin, priors)


def _one_study(
    scores: Scores,
    pair: tuple[str, str],
    sources: Sequence[str],
    fixed: Collection[str],
    rng: np.random.Generator,
    resamples: int,
) -> _OneStudy:
    """The difference averaged over the study's replicates, and the influence of each cluster of its rows."""
    rows = scores.rows
    difference = paired(scores.sums[pair[0]], scores.sums[pair[1]], pair, fixed).mean(axis=0)
    members = statistics.strata_of_sources(rows.groups, rows.sources, sources)
    strata = [statistics.cluster_sums(rows.groups[m], rows.weights[m], difference[m, None]) for m in members]
    clusters = [np.unique(rows.groups[m].astype(str)) for m in members]  # in the order of cluster_sums
    value, influences = statistics.influences(strata)
    weights = np.array([rows.weights[rows.sources == source].sum() for source in sources])
    rows_df = statistics.t_df(statistics.bootstrap(strata, rng, resamples))
    return _OneStudy(
        float(value[0]),
        np.concatenate(clusters),
        influences[0],
        float(rows_df[0]),
        share=float(((weights / weights.sum()) ** 2).sum()),
        n=sum(len(m) for m in members),
    )


def _pooled(found: Sequence[_OneStudy], trained: int) -> Parts:
    """Studies as replicates: a study has influence only through its own clusters, so shared rows show as covariance."""
    clusters = np.unique(np.concatenate([one.clusters for one in found]))
    influences = np.zeros((len(found), len(clusters)))
    for row, one in zip(influences, found, strict=True):
        row[np.searchsorted(clusters, one.clusters)] = one.influences
    return parts_of(
        np.array([one.value for one in found]),
        influences,
        unit=trained * float(np.mean([one.share for one in found])),
        # The smallest: one study's few groups make the whole uncertain.
        rows_df=float(np.min([one.rows_df for one in found])),
        n=sum(one.n for one in found),
        n_groups=len(clusters),
        is_same=not any(one.value or one.influences.any() for one in found),
    )
