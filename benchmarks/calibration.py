"""Whether a verdict about recipes holds what it promises: `python -m benchmarks.calibration [FOLDER]`

FOLDER is like metrics/eval: `<model>/conversations.parquet` with a column `replicate`, base among the models. The
committed one (benchmarks/data/twelve_trainings, see its README) has 6 trainings of each of two recipes. Two things are
counted, into benchmarks/results/calibration.json:

- same recipe: k replicates of a recipe are compared with k others of it, in every distinct way. All are trainings of
  one recipe, so every "better" or "worse" between them is false: at most 5 % may be.
- simulation: studies with known truth. How often the 95 % interval holds it, how many studies have a false verdict
  (at most 5 %), how often a planted difference is found, and the same for verdicts from one training each. And how
  often equal variants are called different with the prior between trainings limited as it is, or not.

`--simulations 0` leaves out the second. On one core the first takes half a minute, the second about 10.

Fresh trainings of one recipe on other rows, counted the same way:

    dvc exp run -n fresh -S seed=11 -S +variants.B.replicates=12 -S variants.B.train.max_steps=20 eval-base eval@B
    python -m benchmarks.calibration metrics/eval --model B --simulations 0 --results fresh.json

The committed ones are of seeds 11, 23 (before profile tiny left out long rows) and 31.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from scipy.special import stdtr

from abctune.core.files import write_json
from abctune.core.params import BASE
from abctune.core.provenance import versions
from abctune.core.records import GENERAL
from abctune.study.comparison import pairs_of
from abctune.study.inputs import OVERALL
from abctune.study.recipes import RecipeComparison, TestRows, compare_recipes
from abctune.study.statistics import holm
from abctune.study.variances import (
    MAX_PRIOR_DF,
    Parts,
    Prior,
    from_replicates,
    parts_of,
    prior_of_variances,
    priors_of,
)

RESULTS = Path(__file__).parent / "results/calibration.json"
TWELVE_TRAININGS = Path(__file__).parent / "data/twelve_trainings"
MARGIN = 0.02
MOST_WAYS = 500  # of dividing one recipe's replicates; where there are more, so many are drawn
DIFFERENT = ("better", "worse")

Floats = NDArray[np.float64]
PartsOfSets = dict[str, list[Parts]]  # by set, of all differences


def main(
    folder: Annotated[Path, typer.Argument(help="like metrics/eval, with replicates")] = TWELVE_TRAININGS,
    model: Annotated[list[str] | None, typer.Option(help="of these variants alone")] = None,
    simulations: Annotated[int, typer.Option(help="studies per cell of the simulation")] = 500,
    results: Annotated[Path, typer.Option(help="where the JSON goes")] = RESULTS,
) -> None:
    """Count false verdicts and found differences, in measured trainings and in simulated studies."""
    started = time.perf_counter()
    scored = read_scored(folder, model)
    result: dict[str, Any] = {
        "same_recipe": same_recipe(scored),
        "same_recipes_in_one_study": same_recipes_in_one_study(scored),
        "two_recipes": two_recipes(scored),
        "simulation": [cell.measured(simulations) for cell in cells()] if simulations else [],
        "limits_of_the_prior": limits_of_the_prior(2 * simulations),
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(results, result)
    print(render(result))


# --- measured trainings ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """The test rows and every model's sums, replicates x rows."""

    rows: TestRows
    sums: dict[str, Floats]

    @property
    def sets(self) -> dict[str, tuple[str, ...]]:
        """All sources but general text together, then each."""
        every = tuple(dict.fromkeys(self.rows.sources.tolist()))
        return {OVERALL: tuple(s for s in every if s != GENERAL), **{source: (source,) for source in every}}

    def compare(self, sums: Mapping[str, Floats], **options: Any) -> RecipeComparison:
        """Compare models on these rows: every variant with base, every variant with the earlier ones."""
        return compare_recipes(
            self.rows, sums, pairs_of(list(sums)), self.sets, **{"margin": MARGIN, "seed": 3407, **options}
        )


def read_scored(folder: Path, variants: Collection[str] | None = None) -> Scored:
    """Read `<model>/conversations.parquet` of base and the variants, or all, in a folder like metrics/eval."""
    tables = {
        path.parent.name: pd.read_parquet(path)
        for path in sorted(folder.glob("*/conversations.parquet"))
        if not variants or path.parent.name in (BASE, *variants)
    }
    if BASE not in tables:
        raise SystemExit(f"{folder} has no {BASE}/conversations.parquet; name a folder like metrics/eval")
    rows = tables[BASE].sort_values("id")
    sums = {
        model: table.pivot(index="replicate", columns="id", values="nll")[rows["id"]].to_numpy(float)
        for model, table in tables.items()
    }
    columns = rows["n_supervised"].to_numpy(float), rows["group"].to_numpy(), rows["source"].to_numpy()
    return Scored(TestRows(*columns), {BASE: sums.pop(BASE), **sums})


def same_recipe(scored: Scored) -> list[dict[str, Any]]:
    """Trainings of one recipe compared with other trainings of the same: every difference that is found is false.

    `any` counts studies (base and the two halves) in which that happens on some set.
    """
    found = []
    for k in (1, 2, 3, 4, 5, 6):
        comparisons = [scored.compare(sums) for sums in halves(scored, k)]
        for on in scored.sets if comparisons else ():
            differences = [comparison.difference("second", "first", on) for comparison in comparisons]
            found.append(
                {
                    "k": k,
                    "set": on,
                    "comparisons": len(differences),
                    "interval_without_0": sum(not d.low <= 0 <= d.high for d in differences),
                    "called_different": sum(d.outcome in DIFFERENT for d in differences),
                }
            )
        if comparisons:
            studies = [[c.difference("second", "first", on) for on in scored.sets] for c in comparisons]
            found.append(
                {
                    "k": k,
                    "set": "any",
                    "comparisons": len(studies),
                    "interval_without_0": sum(any(not d.low <= 0 <= d.high for d in one) for one in studies),
                    "called_different": sum(any(d.outcome in DIFFERENT for d in one) for one in studies),
                }
            )
    return found


def same_recipes_in_one_study(scored: Scored, k: int = 3) -> dict[str, int]:
    """Studies of base and two halves of each of two recipes: in how many a half is called different from its other."""
    ways = [
        [(model, first, second) for first, second in distinct_halves(len(values), k)]
        for model, values in scored.sums.items()
        if model != BASE
    ]
    studies = false = 0
    for one, other in product(*ways) if len(ways) == 2 else ():
        sums = {BASE: scored.sums[BASE]}
        for model, first, second in (one, other):
            sums |= {
                f"{model}1": scored.sums[model][list(first)],
                f"{model}2": scored.sums[model][list(second)],
            }
        comparison = scored.compare(sums)
        studies += 1
        false += any(
            comparison.difference(f"{model}2", f"{model}1", on).outcome in DIFFERENT
            for model, *_ in (one, other)
            for on in scored.sets
        )
    return {"k": k, "studies": studies, "with_a_false_verdict": false}


def halves(scored: Scored, k: int) -> Iterator[dict[str, Floats]]:
    """Every distinct way to compare k replicates of a recipe with k others of it; base is in each study too."""
    for model, values in scored.sums.items():
        ways = distinct_halves(len(values), k) if model != BASE else []
        if len(ways) > MOST_WAYS:
            chosen = np.random.default_rng(0).choice(len(ways), MOST_WAYS, replace=False)
            ways = [ways[i] for i in sorted(chosen)]
        for first, second in ways:
            yield {BASE: scored.sums[BASE], "first": values[list(first)], "second": values[list(second)]}


def distinct_halves(n: int, k: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to choose two groups of k out of n, whichever comes first."""
    return [
        (first, second)
        for first in combinations(range(n), k)
        for second in combinations(sorted(set(range(n)) - set(first)), k)
        if first < second
    ]


def two_recipes(scored: Scored) -> list[dict[str, Any]]:
    """Every pair of different recipes, with every subset of k common replicates: how often which verdict is given."""
    found = []
    for reference, model in combinations([name for name in scored.sums if name != BASE], 2):
        common = min(len(scored.sums[name]) for name in (reference, model))
        for k in range(1, common + 1):
            outcomes: dict[str, list[str]] = {on: [] for on in scored.sets}
            crowded: dict[str, int] = dict.fromkeys(scored.sets, 0)
            ratios: dict[str, list[float]] = {on: [] for on in scored.sets}
            for subset in combinations(range(common), k):
                chosen = {name: scored.sums[name][list(subset)] for name in (reference, model)}
                comparison = scored.compare({BASE: scored.sums[BASE], **chosen})
                for on in scored.sets:
                    difference = comparison.difference(model, reference, on)
                    outcomes[on].append(difference.outcome)
                    ratios[on].append(((difference.replicate_sd or 0) / difference.se_rows) ** 2)
                    crowded[on] += in_a_crowd(comparison, model, reference, on) < 0.05
            for on, given in outcomes.items():
                counts = {outcome: given.count(outcome) for outcome in sorted(set(given))}
                row = {"model": model, "reference": reference, "k": k, "set": on, "subsets": len(given)}
                row |= {"outcomes": counts, "different_in_a_study_of_24": crowded[on]}
                found.append(row | {"between_over_rows": round(float(np.median(ratios[on])), 1)})
    return found


def in_a_crowd(comparison: RecipeComparison, model: str, reference: str, on: str) -> float:
    """Holm's p of one difference in a study of base and three variants on four sets: 24 differences.

    The 12 against base are taken as shown and the 9 others that this study lacks as not shown, which is the worst case.
    """
    ours = [d for d in comparison.differences if (d.model, d.reference) == (model, reference)]
    adjusted = holm([*(d.p for d in ours), *[0.0] * 12, *[1.0] * (12 - len(ours))])
    return next(p for d, p in zip(ours, adjusted, strict=False) if d.on == on)


# --- simulated studies -----------------------------------------------------------------------------

VARIANTS, SOURCES, GROUPS = ("A", "B", "C"), ("chat", "instruct"), 40
SIMULATED_SETS = {"overall": SOURCES, "chat": ("chat",), "instruct": ("instruct",)}
GAIN = 0.15  # of variants over base, nats
ROW_SD = 0.04  # of a variant's gain between groups, nats
ROW_SE_OF_PAIR = (
    0.0098  # what follows from it: a pair's standard error from rows on one source, over 1,500 draws
)
VARIES = 0.5  # sd of log(sd between replicates) over variants and sources; 0.5 in the twelve trainings
# Shares of the variance between replicates, as in the twelve trainings: what two variants of one seed have in common (0.59
# there), and what falls on rows rather than on the whole source (0.034 on chat, 0.042 on instruct).
SHARED_NOISE, NOISE_ON_ROWS = 0.6, 0.03
WEIGHT_LOG_MEAN, WEIGHT_LOG_SD = 4.0, 0.7
RESAMPLES = 399


@dataclass(frozen=True)
class Cell:
    """One kind of simulated study."""

    k: int
    ratio: float  # variance of a pair's difference between replicates, in multiples of its variance from rows
    planted: float  # nats by which C is worse than A and B
    variants: int = len(VARIANTS)
    shared: float = SHARED_NOISE

    @property
    def gain(self) -> float:
        """Of every variant over base, nats; a lone variant has nothing but base to be called different from."""
        return GAIN if self.variants > 1 else 0.0

    def measured(self, n: int) -> dict[str, Any]:
        """Rates over n studies."""
        place = (self.k, 10 * self.ratio, 1000 * self.planted, self.variants, 100 * self.shared)
        rng = np.random.default_rng([int(number) for number in place])
        counts = np.mean([self.study(rng) for _ in range(n)], axis=0)
        names = ("covered", "false_verdict", "found", "false_verdict_one_run", "found_one_run", "equivalent")
        rates = dict(zip(names, np.round(counts, 4).tolist(), strict=True))
        return {**asdict(self), "studies": n, **rates}

    def study(self, rng: np.random.Generator) -> tuple[float, ...]:
        """Covered share, any false verdict, C found worse than B overall; the last two with one run each; equivalence."""
        rows, sums = simulate(rng, self)
        many, one = (
            compare_recipes(
                rows,
                {name: values[:k] for name, values in sums.items()},
                pairs_of(list(sums)),
                SIMULATED_SETS,
                margin=MARGIN,
                seed=int(rng.integers(2**31)),
                resamples=RESAMPLES,
            )
            for k in (self.k, 1)
        )
        truth = [self.truth(d.model, d.reference) for d in many.differences]
        covered = np.mean([d.low <= true <= d.high for d, true in zip(many.differences, truth, strict=True)])
        other = "B" if self.variants > 1 else BASE
        wanted = [comparison.difference("C", other, "overall").outcome for comparison in (many, one)]
        false = [
            any(is_false(d.outcome, true) for d, true in zip(comparison.differences, truth, strict=True))
            for comparison in (many, one)
        ]
        return (
            covered,
            false[0],
            wanted[0] == "worse",
            false[1],
            wanted[1] == "worse",
            wanted[0] == "equivalent",
        )

    def truth(self, model: str, reference: str) -> float:
        """The recipes' true difference, the same on every set."""
        gains = {BASE: 0.0, "A": -self.gain, "B": -self.gain, "C": self.planted - self.gain}
        return gains[model] - gains[reference]


def cells() -> list[Cell]:
    """Nothing to find, a difference to find, and one just as large as the margin; then what is hard on the method.

    Hard are a lone variant, of whose variance no other says anything, and variants that are nearly one: their variances are
    hardly more than one variance.
    """
    ratios = {0.0: (0.0, 0.3, 1.0, 3.0, 10.0), 0.05: (0.0, 1.0, 3.0), MARGIN: (0.0, 1.0, 3.0)}
    usual = [
        Cell(k, ratio, planted) for planted, some in ratios.items() for ratio in some for k in (2, 3, 5, 10)
    ]
    alone = [Cell(k, ratio, 0.0, variants=1) for ratio in (3.0, 10.0, 30.0) for k in (2, 3, 5)]
    return usual + alone + [Cell(k, 10.0, 0.0, shared=0.9) for k in (2, 3, 5)]


def is_false(outcome: str, truth: float) -> bool:
    """Whether the truth contradicts a verdict (lower is better)."""
    return {
        "better": truth >= 0,
        "worse": truth <= 0,
        "equivalent": abs(truth) >= MARGIN,
        "not worse": truth >= MARGIN,
        "undecided": False,
    }[outcome]


def simulate(rng: np.random.Generator, cell: Cell) -> tuple[TestRows, dict[str, Floats]]:
    """Scores of base and the variants: unequal rows in groups, skewed losses, noise from rows and from training."""
    k, own_share = cell.k, 1 - cell.shared - NOISE_ON_ROWS
    sizes = rng.integers(1, 4, len(SOURCES) * GROUPS)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    source = (groups >= GROUPS).astype(int)
    weights = np.maximum(1, rng.lognormal(WEIGHT_LOG_MEAN, WEIGHT_LOG_SD, len(groups)).astype(int)).astype(
        float
    )
    base = weights * rng.lognormal(1.0, 0.3, len(groups))
    common = row_effects(rng, groups, weights)
    training = training_sd(cell) * np.exp(VARIES * rng.standard_normal((len(VARIANTS), len(SOURCES))))
    shared = rng.standard_normal((k, len(SOURCES)))
    sums = {BASE: base[None]}
    for i, variant in enumerate(VARIANTS[-cell.variants :]):
        own = rng.standard_normal((k, len(SOURCES)))
        noise = np.sqrt(cell.shared) * shared + np.sqrt(own_share) * own
        on_rows = np.sqrt(NOISE_ON_ROWS * len(groups) / len(SOURCES)) * rng.standard_normal((k, len(groups)))
        gain = -cell.gain + cell.planted * (variant == "C") + common + row_effects(rng, groups, weights)
        sums[variant] = base + weights * (gain + training[i, source] * (noise[:, source] + on_rows))
    return TestRows(weights, groups, np.array(SOURCES)[source]), sums


def training_sd(cell: Cell) -> float:
    """The sd between replicates of one variant that makes a pair's variance `ratio` times that from rows."""
    own = (
        1 - cell.shared if cell.variants > 1 else 0.5
    )  # of a lone variant the pair is with base, which has none
    return float(np.sqrt(cell.ratio / own) * ROW_SE_OF_PAIR / np.sqrt(2))


def row_effects(rng: np.random.Generator, groups: NDArray[np.int64], weights: Floats) -> Floats:
    """A skewed effect per group and row, weaker for long rows; its weighted mean is 0."""
    skewed = (rng.gamma(1.5, size=groups.max() + 1) - 1.5) / np.sqrt(1.5)
    by_row = rng.standard_normal(len(groups))
    length = (np.log(weights) - WEIGHT_LOG_MEAN) / WEIGHT_LOG_SD
    return ROW_SD * (0.8 * skewed[groups] + 0.5 * by_row - 0.3 * (length - WEIGHT_LOG_SD))


# --- how far the prior is to be trusted ------------------------------------------------------------


def limits_of_the_prior(n: int) -> list[dict[str, Any]]:
    """False verdicts among n studies with noise from training alone, with priors as fitted and as limited.

    `spread`: how many times as much trainings differ on the first source as on the second.
    """
    if not n:
        return []
    found = []
    for spread, variants, k in product((1.0, 5.0), (1, 2, 3), (2, 3, 5)):
        rng = np.random.default_rng([variants, k, int(spread)])
        false: Counter[str] = Counter(dict.fromkeys(LIMITS, 0))
        for _ in range(n):
            parts = noise_alone(rng, variants, k, spread)
            for name, of in LIMITS.items():
                priors = of(parts, [k] * variants)
                tests = [p_of(one, priors[on]) for on, some in parts.items() for one in some]
                false[name] += min(holm(tests)) < 0.05
        rates = {name: round(count / n, 4) for name, count in false.items()}
        found.append({"spread": spread, "variants": variants, "k": k, "studies": n, "false_verdict": rates})
    return found


def as_fitted(parts: PartsOfSets, trainings: list[int]) -> dict[str, list[Prior]]:
    """One prior for all sets, as prior_of_variances has it."""
    known = [one for some in parts.values() for one in some]
    df = np.full(len(known), trainings[0] - 1.0)
    prior = prior_of_variances(np.array([one.between / one.unit for one in known]), df)
    return {on: [prior] for on in parts}


def at_most_3(parts: PartsOfSets, trainings: list[int]) -> dict[str, list[Prior]]:
    """The same with the first limit."""
    fitted = as_fitted(parts, trainings)
    return {on: [replace(prior, df=min(prior.df, MAX_PRIOR_DF))] for on, (prior,) in fitted.items()}


def limited(parts: PartsOfSets, trainings: list[int]) -> dict[str, list[Prior]]:
    """The same with both limits."""
    return {on: [of_all] for on, (_, of_all) in priors_of(parts, trainings, len(SOURCES)).items()}


def as_used(parts: PartsOfSets, trainings: list[int]) -> dict[str, list[Prior]]:
    """And each set's own."""
    return {on: list(priors) for on, priors in priors_of(parts, trainings, len(SOURCES)).items()}


LIMITS = {"as fitted": as_fitted, "at most 3": at_most_3, "and a third": limited, "as used": as_used}


def noise_alone(rng: np.random.Generator, variants: int, k: int, spread: float) -> PartsOfSets:
    """Differences between base and variants that are equal, on two sources and overall; rows add no noise."""
    sd = np.array([spread, 1.0])[:, None] * np.exp(VARIES * rng.standard_normal((variants, len(SOURCES), 1)))
    values = sd * rng.standard_normal((variants, len(SOURCES), k))
    pairs = [(one, 1) for one in values] + [(a - b, 2) for a, b in combinations(values, 2)]
    sets = [(source, lambda one, i=i: one[i], 1.0) for i, source in enumerate(SOURCES)]
    sets.append(("overall", lambda one: one.mean(axis=0), 1 / len(SOURCES)))
    return {
        on: [
            parts_of(of(one), np.zeros((k, 1)), unit=trained * share, rows_df=np.inf, n=1, n_groups=1)
            for one, trained in pairs
        ]
        for on, of, share in sets
    }


def p_of(parts: Parts, priors: Sequence[Prior]) -> float:
    """Two-sided p of "no difference" from the replicates alone."""
    variance, df = from_replicates(parts, priors)
    return float(2 * stdtr(df, -abs(parts.by_replicate.mean()) / np.sqrt(variance)))


# --- in words --------------------------------------------------------------------------------------


def render(result: dict[str, Any]) -> str:
    """The same as Markdown tables."""
    lines = [
        "| same recipe, k against k | set | interval leaves out 0 | called different |",
        "|---:|---|---:|---:|",
    ]
    for row in result["same_recipe"]:
        n = row["comparisons"]
        lines.append(
            f"| {row['k']} | {row['set']} | {row['interval_without_0']} of {n} | {row['called_different']} of {n} |"
        )
    both = result["same_recipes_in_one_study"]
    lines += [
        "",
        f"{both['with_a_false_verdict']} of {both['studies']} studies of all, k = {both['k']}: a false verdict.",
    ]
    lines += ["", "| pair | k | set | verdicts | different among 24 |", "|---|---:|---|---|---:|"]
    for row in result["two_recipes"]:
        verdicts = ", ".join(f"{outcome} {n}" for outcome, n in row["outcomes"].items())
        crowd = f"{row['different_in_a_study_of_24']} of {row['subsets']}"
        lines.append(
            f"| {row['model']} − {row['reference']} | {row['k']} | {row['set']} | {verdicts} | {crowd} |"
        )
    lines += [
        "",
        "| variants | shared | planted | ratio | k | covered | false verdict | found | false, one run | found, one run |",
        f"|{'---:|' * 10}",
    ]
    for row in result["simulation"]:
        names = ("covered", "false_verdict", "found", "false_verdict_one_run", "found_one_run")
        rates = " | ".join(f"{100 * row[name]:.1f} %" for name in names)
        cell = " | ".join(f"{row[name]:g}" for name in ("variants", "shared", "planted", "ratio", "k"))
        lines.append(f"| {cell} | {rates} |")
    lines += [
        "",
        f"| spread | variants | k | {' | '.join(LIMITS)} |",
        f"|{'---:|' * (3 + len(LIMITS))}",
    ]
    for row in result["limits_of_the_prior"]:
        rates = " | ".join(f"{100 * rate:.1f} %" for rate in row["false_verdict"].values())
        lines.append(f"| {row['spread']:g} | {row['variants']} | {row['k']} | {rates} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
