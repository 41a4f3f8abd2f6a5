"""Everything the comparison reads, checked to be comparable before a number is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from abctune.core import files
from abctune.core.errors import UserError
from abctune.core.params import BASE, Params

EVAL, TRAIN, DATA = Path("metrics/eval"), Path("metrics/train"), Path("data")
COLUMNS = ["id", "group", "source", "nll", "n_supervised"]  # of conversations.parquet
OVERALL = "overall"
CURVES = {"train_loss": "train/loss", "eval_loss": "eval/loss", "learning_rate": "train/learning_rate"}


@dataclass(frozen=True)
class Evaluated:
    """One model's results on the common test rows."""

    conversations: pd.DataFrame  # id, group, source, nll, n_supervised; sorted by id
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]
    tasks: list[
        dict[str, Any]
    ]  # id, kind, prompt, answer, checks, passed; none where the profile asks for none


@dataclass(frozen=True)
class Trained:
    """One variant's training, and what is known of its data (None where that file is not there)."""

    record: dict[str, Any]  # training.json
    curves: dict[
        str, pd.DataFrame
    ]  # step and one column named like the key; no rows where nothing was logged
    mixed: dict[str, Any] | None
    formatted: dict[str, Any] | None
    split: dict[str, Any] | None


@dataclass(frozen=True)
class Study:
    params: Params
    models: dict[str, Evaluated]  # base first, then the variants as params.yaml orders them
    trained: dict[str, Trained]  # the variants
    raw: dict[str, dict[str, Any]]  # source.json per source

    @property
    def test_rows(self) -> pd.DataFrame:
        return self.models[BASE].conversations

    @property
    def sources(self) -> list[str]:
        """The sources in the test set, in params.yaml's order."""
        present = set(self.test_rows["source"])
        return [name for name in self.params.sources if name in present]


def read_study(params: Params) -> Study:
    """Read all inputs.

    Raises:
        UserError: a required file is missing or damaged, or the models were not scored on the same rows.
    """
    models = {name: read_evaluated(name) for name in (BASE, *params.variants)}
    require_same_test(models)
    require_known_sources(models[BASE].conversations, params)
    require_held_out(models[BASE].conversations, params.variants)
    raw = {
        name: optional(DATA / "raw" / name / "source.json", f"fetch@{name}") or {} for name in params.sources
    }
    return Study(params, models, {name: read_trained(name) for name in params.variants}, raw)


def read_evaluated(model: str) -> Evaluated:
    folder, made_by = EVAL / model, "eval-base" if model == BASE else f"eval@{model}"
    path = folder / "conversations.parquet"
    rows = files.read_table(path, made_by, COLUMNS).to_pandas().sort_values("id", ignore_index=True)
    if rows.empty or not (np.isfinite(rows["nll"]) & (rows["n_supervised"] > 0)).all():
        problem = (
            "holds no conversations"
            if rows.empty
            else "has a conversation without a finite nll or without supervised tokens"
        )
        raise UserError(f"{path} {problem}; run `dvc repro --force {made_by}`")
    if rows["id"].duplicated().any():
        raise UserError(f"{path} scores one conversation twice; run `dvc repro --force {made_by}`")
    metrics = files.read_json(folder / "metrics.json", made_by)
    require_keys(metrics, ("test_of", "generation"), folder / "metrics.json", made_by)
    samples, tasks = (files.read_jsonl(folder / f"{name}.jsonl", made_by) for name in ("samples", "tasks"))
    return Evaluated(rows, metrics, samples, tasks)


def read_trained(variant: str) -> Trained:
    folder, made_by = TRAIN / variant, f"train@{variant}"
    record = files.read_json(folder / "training.json", made_by)
    keys = (
        "arguments",
        "max_length",
        "lora",
        "schedule",
        "exposure",
        "kept",
        "final",
        "resources",
        "versions",
        "hardware",
    )
    require_keys(record, keys, folder / "training.json", made_by)
    curves = {
        name: read_curve(
            folder / "plots/metrics" / f"{file}.tsv", name, made_by, required=name == "train_loss"
        )
        for name, file in CURVES.items()
    }
    return Trained(
        record,
        curves,
        mixed=optional(DATA / "mixed" / f"{variant}.json", f"mix@{variant}"),
        formatted=optional(DATA / "formatted" / variant / "summary.json", f"format@{variant}"),
        split=optional(DATA / "split" / variant / "summary.json", f"split@{variant}"),
    )


def read_curve(path: Path, name: str, made_by: str, required: bool) -> pd.DataFrame:
    """A DVCLive curve: `step` and the value, one row per step, renamed to `name`."""
    if not path.exists() and not required:
        return pd.DataFrame({"step": [], name: []})
    try:
        table = pd.read_csv(path, sep="\t")
        return (
            table[["step", path.stem]]
            .astype({"step": int, path.stem: float})
            .rename(columns={path.stem: name})
            .drop_duplicates("step", keep="last")
        )
    except FileNotFoundError:
        raise UserError(f"{path} not found; `dvc repro {made_by}` makes it") from None
    except (KeyError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path} cannot be read ({error}); run `dvc repro --force {made_by}`") from None


def require_same_test(models: dict[str, Evaluated]) -> None:
    """Refuse to compare models that were not scored on exactly the same rows, tokens and prompts."""
    reference, first = next(iter(models.items()))
    for name, model in models.items():
        fault = test_fault(first, model)
        if fault:
            raise UserError(
                f"unfair comparison: {reference} and {name} {fault}; "
                f"`dvc repro` scores both on the test rows of evaluation.test_of"
            )


def test_fault(first: Evaluated, other: Evaluated) -> str | None:
    """What makes two models' results incomparable, in words, or None."""
    if first.metrics["test_of"] != other.metrics["test_of"]:
        return f"were scored on the test rows of {first.metrics['test_of']} and of {other.metrics['test_of']}"
    if fault := test_fault_of_rows(first.conversations, other.conversations):
        return fault
    if [sample["prompt"] for sample in first.samples] != [sample["prompt"] for sample in other.samples]:
        return "answered different prompts"
    if [(task["kind"], task["prompt"]) for task in first.tasks] != [
        (t["kind"], t["prompt"]) for t in other.tasks
    ]:
        return "were asked different tasks"
    return None


def test_fault_of_rows(a: pd.DataFrame, b: pd.DataFrame) -> str | None:
    if different := len(set(a["id"]) ^ set(b["id"])):
        return f"were scored on different rows ({different:,} of them were scored for one of the two only)"
    for column, what in (
        ("source", "sources"),
        ("group", "groups"),
        ("n_supervised", "numbers of supervised tokens"),
    ):
        if different := int((a[column].to_numpy() != b[column].to_numpy()).sum()):
            return f"have different {what} for {different:,} of the {len(a):,} rows"
    return None


def require_known_sources(test: pd.DataFrame, params: Params) -> None:
    if unknown := sorted(set(test["source"]) - set(params.sources)):
        raise UserError(
            f"the test rows come from {', '.join(unknown)}, which params.yaml's sources lack; run `dvc repro`"
        )


def require_held_out(test: pd.DataFrame, variants: Iterable[str]) -> None:
    """No test row, nor another row of its group, may be among a variant's training rows.

    `split` sees to it; this looks again at what was written, where it is there to look at.
    """
    for variant in variants:
        path = DATA / "split" / variant / "train.parquet"
        if not path.exists():
            continue
        train = files.read_table(path, f"split@{variant}", ["id", "group"]).to_pandas()
        for column, what in (("id", "test rows are"), ("group", "test rows have a row of their group")):
            if n := int(test[column].isin(set(train[column])).sum()):
                raise UserError(
                    f"unfair comparison: {n:,} of {len(test):,} {what} among the rows {variant} was trained on "
                    f"({path}); run `dvc repro --force split@{variant}`"
                )


def require_keys(document: Any, keys: Iterable[str], path: Path, made_by: str) -> None:
    if missing := [key for key in keys if not isinstance(document, dict) or key not in document]:
        raise UserError(f"{path} lacks {', '.join(missing)}; run `dvc repro --force {made_by}`")


def optional(path: Path, made_by: str) -> dict[str, Any] | None:
    return files.read_json(path, made_by) if path.exists() else None
