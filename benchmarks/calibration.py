"""Whether a verdict about recipes holds what it promises: `python -m benchmarks.calibration [FOLDER]`

FOLDER is like metrics/eval: `<model>/conversations.parquet` with a column `replicate`, base among the models. The
committed one (benchmarks/data/twelve_trainings, see its README) has 6 trainings of each of two recipes. Two things are
counted, into benchmarks/results/calibration.json:

- same recipe: the replicates of each recipe are divided into two halves of k in every distinct way. The halves are
  trainings of one recipe, so every "better" or "worse" between them is false: at most 5 % may be.
- simulation: studies with known truth. How often the 95 % interval holds it, how many studies have a false verdict
  (at most 5 %), how often a planted difference is found, and the same for verdicts from one training each.

`--simulations 0` leaves out the second. On one core the first takes half a minute, the second about 8.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray

from abctune.core.files import write_json
from abctune.core.params import BASE
from abctune.core.provenance import versions
from abctune.study.comparison import pairs_of
from abctune.study.recipes import RecipeComparison, TestRows, compare_recipes
from abctune.study.statistics import holm

RESULTS = Path(__file__).parent / "results/calibration.json"
TWELVE_TRAININGS = Path(__file__).parent / "data/twelve_trainings"
MARGIN = 0.02
DIFFERENT = ("better", "worse")

Floats = NDArray[np.float64]


def main(
    folder: Annotated[Path, typer.Argument(help="like metrics/eval, with replicates")] = TWELVE_TRAININGS,
    simulations: Annotated[int, typer.Option(help="studies per cell of the simulation")] = 500,
    results: Annotated[Path, typer.Option(help="where the JSON goes")] = RESULTS,
) -> None:
    """Count false verdicts and found differences, in measured trainings and in simulated studies."""
    started = time.perf_counter()
    scored = read_scored(folder)
    result: dict[str, Any] = {
        "same_recipe": same_recipe(scored),
        "two_recipes": two_recipes(scored),
        "simulation": [cell.measured(simulations) for cell in cells()] if simulations else [],
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
        """All sources together, then each."""
        sources = tuple(dict.fromkeys(self.rows.sources.tolist()))
        return {"overall": sources, **{source: (source,) for source in sources}}

    def compare(self, sums: Mapping[str, Floats], **options: Any) -> RecipeComparison:
        """Compare models on these rows: every variant with base, every variant with the earlier ones."""
        return compare_recipes(
            self.rows, sums, pairs_of(list(sums)), self.sets, **{"margin": MARGIN, "seed": 3407, **options}
        )


def read_scored(folder: Path) -> Scored:
    """Read `<model>/conversations.parquet` of every model in a folder like metrics/eval."""
    tables = {
        path.parent.name: pd.read_parquet(path) for path in sorted(folder.glob("*/conversations.parquet"))
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
    """Trainings of one recipe compared with other trainings of the same: every difference that is found is false."""
    found = []
    for k in (1, 2, 3, 4, 5, 6):
        counts: dict[str, dict[str, int]] = {}
        for sums in halves(scored, k):
            comparison = scored.compare(sums)
            for on in scored.sets:
                difference = comparison.difference("second", "first", on)
                count = counts.setdefault(
                    on, {"comparisons": 0, "interval_without_0": 0, "called_different": 0}
                )
                count["comparisons"] += 1
                count["interval_without_0"] += not difference.low <= 0 <= difference.high
                count["called_different"] += difference.outcome in DIFFERENT
        found += [{"k": k, "set": on, **count} for on, count in counts.items()]
    return found


def halves(scored: Scored, k: int) -> Iterator[dict[str, Floats]]:
    """Every distinct way to compare k replicates of a recipe with k others of it; base is in each study too."""
    for model, values in scored.sums.items():
        numbers = range(len(values))
        for first in combinations(numbers, k) if model != BASE else ():
            for second in combinations(sorted(set(numbers) - set(first)), k):
                if first < second:
                    yield {
                        BASE: scored.sums[BASE],
                        "first": values[list(first)],
                        "second": values[list(second)],
                    }


def two_recipes(scored: Scored) -> list[dict[str, Any]]:
    """Every pair of different recipes, with every subset of k common replicates: how often which verdict is given."""
    found = []
    for reference, model in combinations([name for name in scored.sums if name != BASE], 2):
        common = min(len(scored.sums[name]) for name in (reference, model))
        for k in range(1, common + 1):
            outcomes: dict[str, list[str]] = {on: [] for on in scored.sets}
            crowded: dict[str, int] = dict.fromkeys(scored.sets, 0)
            for subset in combinations(range(common), k):
                chosen = {name: scored.sums[name][list(subset)] for name in (reference, model)}
                comparison = scored.compare({BASE: scored.sums[BASE], **chosen})
                for on in scored.sets:
                    outcomes[on].append(comparison.difference(model, reference, on).outcome)
                    crowded[on] += in_a_crowd(comparison, model, reference, on) < 0.05
            for on, given in outcomes.items():
                counts = {outcome: given.count(outcome) for outcome in sorted(set(given))}
                row = {"model": model, "reference": reference, "k": k, "set": on, "subsets": len(given)}
                found.append({**row, "outcomes": counts, "different_in_a_study_of_24": crowded[on]})
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
GAIN = 0.15  # of every variant over base, nats
ROW_SD = 0.04  # of a variant's gain between groups, nats
ROW_SE_OF_PAIR = (
    0.0098  # what follows from it: a pair's standard error from rows on one source, over 1,500 draws
)
VARIES = 0.5  # sd of log(sd between replicates) over variants and sources; 0.5 in the twelve trainings
SHARED_NOISE = 0.3  # share of the variance between replicates that two variants of one seed have in common
NOISE_ON_ROWS = 0.1  # share that falls on rows rather than on the whole source
WEIGHT_LOG_MEAN, WEIGHT_LOG_SD = 4.0, 0.7
RESAMPLES = 399


@dataclass(frozen=True)
class Cell:
    """One kind of simulated study."""

    k: int
    ratio: float  # variance of a pair's difference between replicates, in multiples of its variance from rows
    planted: float  # nats by which C is worse than A and B

    def measured(self, n: int) -> dict[str, Any]:
        """Rates over n studies."""
        rng = np.random.default_rng([self.k, int(10 * self.ratio), int(1000 * self.planted)])
        counts = np.mean([self.study(rng) for _ in range(n)], axis=0)
        names = ("covered", "false_verdict", "found", "false_verdict_one_run", "found_one_run", "equivalent")
        rates = dict(zip(names, np.round(counts, 4).tolist(), strict=True))
        return {"k": self.k, "ratio": self.ratio, "planted": self.planted, "studies": n, **rates}

    def study(self, rng: np.random.Generator) -> tuple[float, ...]:
        """Covered share, any false verdict, C found worse than B overall; the last two with one run each; equivalence."""
        rows, sums = simulate(rng, self.k, self.ratio, self.planted)
        many, one = (
            compare_recipes(
                rows,
                {name: values[:k] for name, values in sums.items()},
                pairs_of([BASE, *VARIANTS]),
                SIMULATED_SETS,
                margin=MARGIN,
                seed=int(rng.integers(2**31)),
                resamples=RESAMPLES,
            )
            for k in (self.k, 1)
        )
        truth = [self.truth(d.model, d.reference) for d in many.differences]
        covered = np.mean([d.low <= true <= d.high for d, true in zip(many.differences, truth, strict=True)])
        wanted = [comparison.difference("C", "B", "overall").outcome for comparison in (many, one)]
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
        gains = {BASE: 0.0, "A": -GAIN, "B": -GAIN, "C": self.planted - GAIN}
        return gains[model] - gains[reference]


def cells() -> list[Cell]:
    """Nothing to find, a difference to find, and one just as large as the margin."""
    ratios = {0.0: (0.0, 0.3, 1.0, 3.0, 10.0), 0.05: (0.0, 1.0, 3.0), MARGIN: (0.0, 1.0, 3.0)}
    return [
        Cell(k, ratio, planted) for planted, some in ratios.items() for ratio in some for k in (2, 3, 5, 10)
    ]


def is_false(outcome: str, truth: float) -> bool:
    """Whether the truth contradicts a verdict (lower is better)."""
    return {
        "better": truth >= 0,
        "worse": truth <= 0,
        "equivalent": abs(truth) >= MARGIN,
        "not worse": truth >= MARGIN,
        "undecided": False,
    }[outcome]


def simulate(
    rng: np.random.Generator, k: int, ratio: float, planted: float
) -> tuple[TestRows, dict[str, Floats]]:
    """Scores of base and three variants: unequal rows in groups, skewed losses, noise from rows and from training."""
    sizes = rng.integers(1, 4, len(SOURCES) * GROUPS)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    source = (groups >= GROUPS).astype(int)
    weights = np.maximum(1, rng.lognormal(WEIGHT_LOG_MEAN, WEIGHT_LOG_SD, len(groups)).astype(int)).astype(
        float
    )
    base = weights * rng.lognormal(1.0, 0.3, len(groups))
    common = row_effects(rng, groups, weights)
    training = training_sd(ratio) * np.exp(VARIES * rng.standard_normal((len(VARIANTS), len(SOURCES))))
    shared = rng.standard_normal((k, len(SOURCES)))
    sums = {BASE: base[None]}
    for i, variant in enumerate(VARIANTS):
        own = rng.standard_normal((k, len(SOURCES)))
        noise = np.sqrt(SHARED_NOISE) * shared + np.sqrt(1 - SHARED_NOISE - NOISE_ON_ROWS) * own
        on_rows = np.sqrt(NOISE_ON_ROWS * len(groups) / len(SOURCES)) * rng.standard_normal((k, len(groups)))
        gain = -GAIN + planted * (variant == "C") + common + row_effects(rng, groups, weights)
        sums[variant] = base + weights * (gain + training[i, source] * (noise[:, source] + on_rows))
    return TestRows(weights, groups, np.array(SOURCES)[source]), sums


def training_sd(ratio: float) -> float:
    """The sd between replicates of one variant that makes a pair's variance `ratio` times that from rows."""
    return float(np.sqrt(ratio / (1 - SHARED_NOISE)) * ROW_SE_OF_PAIR / np.sqrt(2))


def row_effects(rng: np.random.Generator, groups: NDArray[np.int64], weights: Floats) -> Floats:
    """A skewed effect per group and row, weaker for long rows; its weighted mean is 0."""
    skewed = (rng.gamma(1.5, size=groups.max() + 1) - 1.5) / np.sqrt(1.5)
    by_row = rng.standard_normal(len(groups))
    length = (np.log(weights) - WEIGHT_LOG_MEAN) / WEIGHT_LOG_SD
    return ROW_SD * (0.8 * skewed[groups] + 0.5 * by_row - 0.3 * (length - WEIGHT_LOG_SD))


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
    lines += ["", "| pair | k | set | verdicts | different among 24 |", "|---|---:|---|---|---:|"]
    for row in result["two_recipes"]:
        verdicts = ", ".join(f"{outcome} {n}" for outcome, n in row["outcomes"].items())
        crowd = f"{row['different_in_a_study_of_24']} of {row['subsets']}"
        lines.append(
            f"| {row['model']} − {row['reference']} | {row['k']} | {row['set']} | {verdicts} | {crowd} |"
        )
    lines += [
        "",
        "| planted | ratio | k | covered | false verdict | found | false, one run | found, one run |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["simulation"]:
        names = ("covered", "false_verdict", "found", "false_verdict_one_run", "found_one_run")
        rates = " | ".join(f"{100 * row[name]:.1f} %" for name in names)
        lines.append(f"| {row['planted']} | {row['ratio']} | {row['k']} | {rates} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
