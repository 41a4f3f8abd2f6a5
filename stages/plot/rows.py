"""The rows of the report's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from abctune.core.params import BASE
from abctune.study.comparison import Comparison, pairs_of
from abctune.study.exposure import Confound
from abctune.study.inputs import OVERALL, Study
from abctune.study.own import Flip, SourceCheck, source_checks
from abctune.study.rendering import readable
from abctune.study.verdicts import Verdict, sentence
from abctune.study.wording import adapter_of
from stages.plot.figures.bars import first_seconds, peak_gib, throughput

REPORTED = Path(__file__).with_name("reported.yaml")
FULL = "full"  # the profile that runs what the student report ran

EXCERPT = 400  # characters of a text in the lists of rows won and lost

Row = dict[str, Any]


def verdict_blocks(study: Study, verdicts: list[Verdict], confounds: list[Confound]) -> list[Row]:
    """One block per pair: its verdict on every set, and what can have caused the difference."""
    causes = {(confound.model, confound.reference): confound.sentence for confound in confounds}
    by_base = (
        "Compared with base, the whole recipe is what differs: no part of it alone is shown to be the cause."
    )
    return [
        {
            "pair": pair,
            "verdicts": [v for v in verdicts if v.difference.pair == pair],
            "cause": causes.get(pair, by_base),
        }
        for pair in pairs_of(list(study.models))
    ]


def loss_rows(study: Study, comparison: Comparison) -> list[Row]:
    """A model's loss on every set."""
    return [
        {
            "model": name,
            "replicates": comparison.replicates[name],
            "losses": [comparison.value(name, on.name) for on in comparison.sets],
        }
        for name in study.models
    ]


def training_rows(study: Study) -> list[Row]:
    """Time, memory and final losses: of the published replicate, memory the highest of all."""
    return [
        {
            "variant": name,
            "replicates": len(trained.record.replicates),
            "published": trained.record.published,
            "seconds": first_seconds(trained),
            "all_seconds": sum(one.resources.seconds for one in trained.record.replicates),
            "tokens_per_second": throughput(trained),
            "peak_gib": peak_gib(trained),
            "on_gpu": trained.record.published_replicate.resources.peak_reserved_gib is not None,
            **trained.record.published_replicate.final.model_dump(),
        }
        for name, trained in study.trained.items()
    ]


def quarantine_rows(study: Study) -> list[Row]:
    """Per variant and source, where each row read went: kept, duplicate or quarantined; what was repaired; its subset."""
    rows = []
    for variant, trained in study.trained.items():
        for source, counts in trained.formatted.sources.items():
            subsets = trained.split.sources.get(source, {})
            rows.append(
                {
                    "variant": variant,
                    "source": source,
                    "read": counts.read,
                    "kept": counts.kept,
                    "duplicate": counts.duplicate,
                    "truncated": counts.truncated,
                    "quarantined": sum(counts.quarantined.values()),
                    "reasons": ", ".join(f"{reason}: {n:,}" for reason, n in counts.quarantined.items()),
                    "repairs": ", ".join(f"{kind}: {n:,}" for kind, n in counts.repairs.items()),
                    **{key: subsets.get(key, 0) for key in ("train", "val", "test", "contaminated")},
                }
            )
    return rows


def samples(study: Study) -> list[Row]:
    """Every fixed prompt with all models' answers: unselected, in the order of the list."""
    return [
        {
            "prompt": readable(sample.prompt),
            "answers": [
                {"model": name, **model.samples[i].model_dump(), "answer": readable(model.samples[i].answer)}
                for name, model in study.models.items()
            ],
        }
        for i, sample in enumerate(study.models[BASE].samples)
    ]


def task_rows(study: Study) -> list[Row]:
    """Every task with each model's answer and the checks it failed, in the order asked."""
    return [
        {
            "prompt": readable(task.prompt),
            "answers": {
                name: {
                    "passed": model.tasks[i].passed,
                    "answer": readable(model.tasks[i].answer),
                    "failed": [check for check, held in model.tasks[i].checks.items() if not held],
                }
                for name, model in study.models.items()
            },
        }
        for i, task in enumerate(study.models[BASE].tasks)
        if task.source is None
    ]


# Parts of a check in words (stages/eval/own_checks.py names them).
PARTS = {
    "calls": "a call",
    "name": "the right tools",
    "arguments": "the right tools and arguments",
    "json_object": "a JSON object",
}


def part_counts(check: SourceCheck) -> dict[str, dict[str, int]]:
    """By model, how many rows hold each part of a check, in words; empty where the check has one part."""
    return {
        name: {PARTS.get(part, part.replace("_", " ")): n for part, n in parts.items()}
        for name, parts in check.parts.items()
        if len(parts) > 1
    }


def own_rows(study: Study) -> list[Row]:
    """Every source's own check: the labels' counts, and per pair the rows won and lost."""
    return [
        {
            "source": check.source,
            "kind": check.kind,
            "labels": check.by_label(check.labels),
            "macro_f1": check.macro_f1,
            "n": check.n,
            "parts": part_counts(check),
            "flips": [
                {
                    "model": flips.model,
                    "reference": flips.reference,
                    "pair": sentence(
                        f"{adapter_of(flips.model)} compared with {adapter_of(flips.reference)}"
                    ),
                    "won": len(flips.won),
                    "lost": len(flips.lost),
                    "rows": [
                        flip_row(flip, how)
                        for how, of in (("won", flips.won), ("lost", flips.lost))
                        for flip in of
                    ],
                }
                for flips in check.flips
            ],
        }
        for check in source_checks(study)
    ]


def flip_row(flip: Flip, how: str) -> Row:
    """One row on which two models differ; long texts are cut, tasks.jsonl has them whole."""
    texts = {
        "prompt": flip.ours.prompt,
        "expected": flip.ours.expected or "",
        "ours": flip.ours.answer,
        "theirs": flip.theirs.answer,
    }
    return {"how": how, **{name: excerpt(readable(text)) for name, text in texts.items()}}


def excerpt(text: str) -> str:
    """The start of a text, with a mark where it was cut."""
    return text if len(text) <= EXCERPT else text[:EXCERPT] + " […]"


def reported(study: Study, comparison: Comparison) -> Row:
    """The student report's numbers and this run's, for the variants that both have."""
    stated = YAML(typ="safe", pure=True).load(REPORTED.read_text(encoding="utf-8"))
    measured = {}
    for name in stated["variants"]:
        if name in study.trained:
            trained = study.trained[name]
            measured[name] = {
                "seconds": first_seconds(trained),
                "peak_gb": peak_gib(trained),
                "train_loss": trained.record.published_replicate.final.train_loss,
                "eval_loss": trained.record.published_replicate.final.eval_loss,
                "test_loss": comparison.value(name, OVERALL),
                "seen": sum(trained.record.exposure.conversations.values()),
            }
    return stated | {"measured": measured, "same_setting": study.params.profile == FULL}
