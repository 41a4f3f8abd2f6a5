"""Pool several seeds' runs: `python -m tools.seeds REVISION REVISION REVISION`.

A revision is an experiment's name, a branch, a tag or a commit; `dvc exp run --queue -S seed=1,2,3` makes some.
Replicates differ in the training seed alone; `seed` decides as well which rows the mixes draw and which are held out. So
models are compared within each seed, on that seed's test rows, and the differences are pooled over the seeds.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
import typer
from ruamel.yaml import YAML

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import BASE, PARAMS_FILE
from abctune.core.places import EVAL
from abctune.core.records import GENERAL, LOSS
from abctune.study.comparison import pairs_of
from abctune.study.inputs import OVERALL, test_fault_of_rows
from abctune.study.recipes import RecipeComparison, RecipeDifference, TestRows
from abctune.study.wording import digits_for, interval, number, on_set, with_unit
from tools.dotted import flat
from tools.pooling import Scores, pool_studies

COLUMNS = ["id", "group", "source", "replicate", LOSS.sum, LOSS.weight]
MIN_SEEDS = 3  # from two, an interval is so wide or so uncertain that it says nothing
# Revisions are read out of the remote, too, where the cache lacks them.
PULL = (
    "where it was made, `dvc push --all-commits` sends it to the remote; an experiment's travels by `dvc exp push origin "
    "NAME` and `dvc exp pull origin NAME`; else run it again"
)


@dataclass(frozen=True)
class SeedRun:
    """One revision's params and every model's conversations, base first."""

    revision: str
    params: dict[str, Any]
    rows: dict[str, pd.DataFrame]  # one row per (replicate, conversation), sorted by these

    @property
    def seed(self) -> int:
        """The study's seed, which the runs differ in."""
        return int(self.params["seed"])

    @property
    def test_rows(self) -> pd.DataFrame:
        """The test rows once."""
        base = self.rows[BASE]
        return base[base["replicate"] == 1]

    @property
    def scores(self) -> Scores:
        """What the pooling takes."""
        test = self.test_rows
        sums = {
            name: rows[LOSS.sum].to_numpy(float).reshape(-1, len(test)) for name, rows in self.rows.items()
        }
        return Scores(TestRows.of(test, LOSS.weight), sums)


@exits_with_one_line
def main(
    revisions: Annotated[list[str], typer.Argument(help="experiments, branches, tags or commits")],
) -> None:
    """Pool runs that differ in the seed alone, and print what they show together."""
    runs = [read_run(revision) for revision in dict.fromkeys(revisions)]
    require_one_study(runs)
    print(render(runs, pooled(runs)))


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
        for replicate, of_replicate in own.groupby("replicate"):
            if fault := test_fault_of_rows(rows[BASE], of_replicate):
                raise UserError(
                    f"unfair comparison in {revision}: {BASE} and replicate {replicate} of {name} {fault}"
                )
    return SeedRun(revision, params, rows)


def read_conversations(files: Any, revision: str, model: str) -> pd.DataFrame:
    """One model's rows, sorted by replicate and id."""
    path = (EVAL / model / "conversations.parquet").as_posix()
    try:
        content = files.read_bytes(path)
    # Where the cache lacks the data, a folder reads as empty and a file as missing, or as no remote to ask.
    except Exception as error:
        cause = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise UserError(f"{revision}: {path} is not in the cache{cause}; {PULL}") from None
    try:
        rows = pd.read_parquet(io.BytesIO(content))
        if "replicate" not in rows:  # scored by a version that trained each variant once
            rows["replicate"] = 1
        return rows[COLUMNS].sort_values(["replicate", "id"], ignore_index=True)
    except KeyError as error:
        raise UserError(f"{revision}: {path} lacks columns ({error}); run that revision again") from None
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


def pooled(runs: list[SeedRun]) -> RecipeComparison:
    """Every pair on every set over the seeds, corrected for all of them."""
    present = set.intersection(*(set(run.test_rows["source"]) for run in runs))
    first = runs[0]
    sources = [source for source in first.params["sources"] if source in present]
    sets = {OVERALL: sources} | {source: [source] for source in sources}
    if GENERAL in present:
        sets[GENERAL] = [GENERAL]
    return pool_studies(
        [run.scores for run in runs],
        pairs_of(list(first.rows)),
        sets,
        margin=first.params["evaluation"].get("margin", 0.0),
        seed=first.seed,
    )


def own_sd(d: RecipeDifference) -> float:
    """Standard deviation between seeds, the part that their rows explain taken off."""
    return math.sqrt(max(0.0, (d.replicate_sd or 0.0) ** 2 - d.interaction))


def sentence(d: RecipeDifference, margin: float) -> str:
    """What the seeds show together about one difference."""
    names, seeds, where = f"{d.model} − {d.reference}", f"over {d.k} seeds", on_set(d.on)
    if d.low is None or d.high is None:
        return f"{d.model} against {d.reference} {where}: not shown {seeds}: {d.why_no_interval}."
    amount = with_unit(interval(d.value, d.low, d.high))
    if d.outcome in ("better", "worse"):
        size = interval(abs(d.value), *sorted((abs(d.low), abs(d.high))))
        verdict = f"{d.model} is {d.outcome} than {d.reference} {where} by {with_unit(size)} {seeds}."
    elif d.outcome == "equivalent":
        verdict = f"{d.model} and {d.reference} are equivalent {where} within ±{margin:g} nats {seeds} ({names} = {amount})."
    elif d.outcome == "not worse":
        verdict = f"{d.model} is not worse than {d.reference} {where} by more than {margin:g} nats {seeds} ({names} = {amount})."
    else:
        zero = d.low <= 0 <= d.high
        reason = "the interval contains 0" if zero else f"p = {d.p_holm:.2g} after correction"
        verdict = (
            f"{d.model} against {d.reference} {where}: not shown {seeds}: {reason} ({names} = {amount})."
        )
    return f"{verdict} {seed_effect(d)}".rstrip()


def seed_effect(d: RecipeDifference) -> str:
    """What to say where another seed would change the difference by more than the variants differ."""
    sd, value = own_sd(d), abs(d.value)
    if sd <= value:
        return ""
    digits = digits_for(sd, value, sd)
    return (
        f"The seed effect is larger than the difference: between seeds it varies by {number(sd, digits)} nats "
        f"(standard deviation), the variants differ by {number(value, digits)}. One run cannot tell them apart."
    )


def render(runs: list[SeedRun], found: RecipeComparison) -> str:
    """Markdown: what was pooled, the sentences, and the numbers that they rest on."""
    assert found.margin is not None  # pool_studies sets it
    margin = found.margin
    rows = [set(run.test_rows["id"]) for run in runs]
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
        "the test rows. Models are compared within a seed, on the same rows, over their replicates.",
        "",
        "## Verdicts",
        "",
        *(f"- {sentence(d, margin)}" for d in found.differences),
        "",
        "## Numbers",
        "",
        "Difference in loss, nats per token; below 0 the first model is better. Intervals are for other seeds and other "
        "rows. Two sources of chance: the standard deviation between seeds, and what one seed's test rows leave open.",
        "",
        f"| pair | on | {' | '.join(f'seed {seed}' for seed in seeds)} | mean [95 %] | p, Holm | between seeds | rows, one seed |",
        f"|---|---|{'---:|' * len(seeds)}---|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(table_row(d) for d in found.differences)])


def table_row(d: RecipeDifference) -> str:
    """One line of the table of numbers."""
    each = " | ".join(number(value, 3) for value in d.by_replicate)
    if d.low is None or d.high is None or d.se_rows is None:
        return f"| {d.model} − {d.reference} | {d.on} | {each} | {number(d.value, 3)} | | {number(own_sd(d), 3)} | |"
    of_rows = math.sqrt(d.se_rows**2 + d.interaction)
    return (
        f"| {d.model} − {d.reference} | {d.on} | {each} | {interval(d.value, d.low, d.high)} "
        f"| {d.p_holm:.2g} | {number(own_sd(d), 3)} | {number(of_rows, 3)} |"
    )


if __name__ == "__main__":
    typer.run(main)
