"""Pool several seeds' runs: `python -m tools.seeds REVISION REVISION REVISION ...`

A revision is an experiment's name, a branch, a tag or a commit; `dvc exp run --queue -S seed=1,2,3` makes some.
Models are compared within each seed, on that seed's test rows, and the differences are pooled over the seeds.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
import typer
from ruamel.yaml import YAML

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import BASE, PARAMS_FILE
from abctune.study import statistics
from abctune.study.comparison import ALPHA, pairs_of
from abctune.study.fairness import test_fault_of_rows
from abctune.study.inputs import OVERALL
from abctune.study.origins import flat
from abctune.study.places import EVAL
from abctune.study.pooling import Pooled, SeedEstimate, estimate, pool
from abctune.study.wording import digits_for, interval, number, with_unit

COLUMNS = ["id", "group", "source", "replicate", "nll", "n_supervised"]
MIN_SEEDS = 3  # from two, an interval is so wide or so uncertain that it says nothing
PULL = "`dvc pull` or `dvc exp pull` brings it where a remote has it, else run it again"


@dataclass(frozen=True)
class SeedRun:
    revision: str
    params: dict[str, Any]
    rows: dict[str, pd.DataFrame]  # model -> its conversations, sorted by id; base first

    @property
    def seed(self) -> int:
        return self.params["seed"]


@dataclass(frozen=True)
class PooledDifference:
    """loss(model) - loss(reference), over the seeds: below 0, `model` is better."""

    model: str
    reference: str
    on: str
    by_seed: dict[int, float]
    pooled: Pooled
    p_holm: float

    @property
    def shown(self) -> bool:
        return self.p_holm < ALPHA and not self.pooled.low <= 0 <= self.pooled.high

    @property
    def text(self) -> str:
        where, found, seeds = (
            "overall" if self.on == OVERALL else f"on {self.on}",
            self.pooled,
            len(self.by_seed),
        )
        amount = interval(found.value, found.low, found.high)
        if self.shown:
            outcome, size = (
                "better" if found.value < 0 else "worse",
                sorted((abs(found.low), abs(found.high))),
            )
            amount = interval(abs(found.value), *size)
            verdict = f"{self.model} is {outcome} than {self.reference} {where} by {with_unit(amount)} over {seeds} seeds."
        else:
            reason = (
                "the interval contains 0"
                if found.low <= 0 <= found.high
                else f"p = {self.p_holm:.2g} after correction"
            )
            verdict = f"{self.model} against {self.reference} {where}: not shown over {seeds} seeds: {reason} ({self.model} − {self.reference} = {with_unit(amount)})."
        return f"{verdict} {self.seed_effect}".rstrip()

    @property
    def seed_effect(self) -> str:
        """What to say where another seed would change the difference by more than the variants differ."""
        sd, value = self.pooled.seed_sd, abs(self.pooled.value)
        if sd <= value:
            return ""
        digits = digits_for(sd, value, sd)
        return (
            f"The seed effect is larger than the difference: between seeds it varies by {number(sd, digits)} nats "
            f"(standard deviation), the variants differ by {number(value, digits)}. One run cannot tell them apart."
        )


@exits_with_one_line
def main(
    revisions: Annotated[list[str], typer.Argument(help="experiments, branches, tags or commits")],
) -> None:
    runs = [read_run(revision) for revision in dict.fromkeys(revisions)]
    require_one_study(runs)
    print(render(runs, pooled_differences(runs)))


def read_run(revision: str) -> SeedRun:
    """A revision's params and every model's conversations, out of Git and the DVC cache."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    try:
        files = DVCFileSystem(rev=revision)
        params = YAML(typ="safe", pure=True).load(files.read_bytes(PARAMS_FILE.as_posix()))
    except FileNotFoundError:
        raise UserError(f"{revision} has no {PARAMS_FILE}; name a revision of this project") from None
    except (DvcException, SCMError) as error:
        names = "`dvc exp list --all-commits` names the experiments"
        raise UserError(f"no revision {revision!r} here ({str(error).splitlines()[0]}); {names}") from None
    rows = {name: read_conversations(files, revision, name) for name in (BASE, *params["variants"])}
    for name, own in rows.items():
        if fault := test_fault_of_rows(rows[BASE], own):
            raise UserError(f"unfair comparison in {revision}: {BASE} and {name} {fault}")
    return SeedRun(revision, params, rows)


def read_conversations(files: Any, revision: str, model: str) -> pd.DataFrame:
    path = (EVAL / model / "conversations.parquet").as_posix()
    try:
        content = files.read_bytes(path)
    # Where the cache lacks the data, a folder reads as empty and a file as missing, or as no remote to ask.
    except Exception as error:
        cause = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise UserError(f"{revision}: {path} is not in the cache{cause}; {PULL}") from None
    try:
        rows = pd.read_parquet(io.BytesIO(content), columns=COLUMNS)
        return rows[rows["replicate"] == 1].sort_values("id", ignore_index=True)
    except (ValueError, OSError) as error:  # pyarrow's errors are both
        raise UserError(f"{revision}: {path} cannot be read ({str(error).splitlines()[0]}); {PULL}") from None


def require_one_study(runs: list[SeedRun]) -> None:
    """The runs differ in the seed and in nothing else that params.yaml says."""
    if len(runs) < MIN_SEEDS:
        raise UserError(
            f"{len(runs)} revision{'s' if len(runs) != 1 else ''} given; name at least {MIN_SEEDS}, each of another seed: "
            "`dvc exp run --queue -S seed=1,2,3` makes them"
        )
    first = runs[0]
    for i, run in enumerate(runs):
        if twin := next((other for other in runs[:i] if other.seed == run.seed), None):
            raise UserError(
                f"{twin.revision} and {run.revision} have the same seed ({run.seed}): one run counted twice"
            )
        ours, theirs = flat(first.params), flat(run.params)
        changed = [key for key in {**ours, **theirs} if key != "seed" and ours.get(key) != theirs.get(key)]
        if changed:
            raise UserError(
                f"{first.revision} and {run.revision} differ in {', '.join(changed[:3])}, not in the seed alone: "
                "pool runs of one study"
            )


def pooled_differences(runs: list[SeedRun]) -> list[PooledDifference]:
    """Every pair on every set, with Holm's correction for all of them."""
    found = []
    sources = [
        s for s in runs[0].params["sources"] if all((run.rows[BASE]["source"] == s).any() for run in runs)
    ]
    for on in (OVERALL, *sources):
        for model, reference in pairs_of(list(runs[0].rows)):
            by_seed = {
                run.seed: seed_estimate(run, model, reference, sources if on == OVERALL else [on])
                for run in runs
            }
            found.append(
                (model, reference, on, {s: e.value for s, e in by_seed.items()}, pool(list(by_seed.values())))
            )
    adjusted = statistics.holm([pooled.p for *_, pooled in found])
    return [PooledDifference(*parts, p) for parts, p in zip(found, adjusted, strict=True)]


def seed_estimate(run: SeedRun, model: str, reference: str, sources: list[str]) -> SeedEstimate:
    """The paired difference on this seed's own test rows, resampled nowhere: its linearised parts by group."""
    strata = []
    difference = run.rows[model]["nll"].to_numpy(float) - run.rows[reference]["nll"].to_numpy(float)
    for source in sources:
        of = (run.rows[BASE]["source"] == source).to_numpy()
        rows = run.rows[BASE][of]
        groups = (source + " " + rows["group"]).to_numpy(str)
        sums = statistics.cluster_sums(groups, rows["n_supervised"].to_numpy(float), difference[of, None])
        strata.append((sorted(set(groups.tolist())), sums))
    return estimate(strata)


def render(runs: list[SeedRun], differences: list[PooledDifference]) -> str:
    """Markdown: what was pooled, the sentences, the numbers behind them."""
    rows = [set(run.rows[BASE]["id"]) for run in runs]
    seeds = [run.seed for run in runs]
    lines = [
        f"# {len(runs)} seeds pooled",
        "",
        *(
            f"- seed {run.seed}: {run.revision}, {len(ids):,} test rows"
            for run, ids in zip(runs, rows, strict=True)
        ),
        "",
        f"{len(set.intersection(*rows)):,} test rows are common to all: the seed draws the rows of each mix, and with them "
        "the test rows. Models are compared within a seed, on the same rows.",
        "",
        "## Verdicts",
        "",
        *(f"- {d.text}" for d in differences),
        "",
        "## Numbers",
        "",
        "Difference in loss, nats per token; below 0 the first model is better. Intervals are for other seeds and other "
        "rows. Two sources of chance: the standard deviation between seeds, and what one seed's test rows leave open.",
        "",
        f"| pair | on | {' | '.join(f'seed {seed}' for seed in seeds)} | mean [95 %] | p, Holm | between seeds | rows, one seed |",
        f"|---|---|{'---:|' * len(seeds)}---|---:|---:|---:|",
    ]
    for d in differences:
        each = " | ".join(number(d.by_seed[seed], 3) for seed in seeds)
        found = d.pooled
        lines.append(
            f"| {d.model} − {d.reference} | {d.on} | {each} | {interval(found.value, found.low, found.high)} "
            f"| {d.p_holm:.2g} | {number(found.seed_sd, 3)} | {number(found.row_se, 3)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
