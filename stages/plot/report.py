"""What the report says, put together once for both of its forms: HTML for reading, Markdown for a pull request."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from ruamel.yaml import YAML

from abctune.core.params import BASE
from abctune.study import origins
from abctune.study.comparison import Comparison, pairs_of
from abctune.study.exposure import Confound, ledger, listed, yaml_value
from abctune.study.inputs import OVERALL, Study
from abctune.study.statistics import LEVEL, RESAMPLES
from abctune.study.summary import peak_gib, train_seconds
from abctune.study.tasks import KINDS, TaskComparison, task_headlines
from abctune.study.verdicts import Verdict, number
from stages.plot.figures import Chart, styles_of

HERE = Path(__file__).parent
FEW_GROUPS = 30  # below this, an interval from resampling is itself shaky
MUCH_CUT = 0.05  # share of conversations cut at max_length above which the report warns
MANY_PAIRS = 6
FULL = "full"  # the profile that runs what the student report ran

Report = dict[str, Any]


def report_of(
    study: Study,
    comparison: Comparison,
    verdicts: list[Verdict],
    tasks: TaskComparison,
    confounds: list[Confound],
    charts: dict[str, Chart],
) -> Report:
    params = study.params
    return {
        "profile": params.profile,
        "seed": params.seed,
        "test_of": params.evaluation.test_of,
        "models": list(study.models),
        "variants": list(study.trained),
        "sources": study.sources,
        "styles": styles_of(study.trained),
        "base_model": base_model(study),
        "comparison": comparison,
        "pairs": verdict_blocks(study, verdicts, confounds),
        "headlines": headlines(verdicts) + task_headlines(tasks),
        "tasks": tasks,
        "task_kinds": KINDS,
        "task_rows": task_rows(study),
        "losses": loss_rows(study, comparison),
        "ledger": ledger(study),
        "confounds": confounds,
        "training": training_rows(study),
        "formatted": quarantine_rows(study),
        "generation": {name: model.metrics["generation"] for name, model in study.models.items()},
        "samples": samples(study),
        "reported": reported(study, comparison),
        "warnings": warnings_of(study, comparison),
        "limits": limits_of(study),
        "origins": {
            "commit": origins.commit(),
            "params": origins.params_diff(),
            "data": origins.data_origins(study),
            "made_with": origins.made_with(study),
        },
        "charts": charts,
        "level": LEVEL,
        "resamples": RESAMPLES,
    }


def base_model(study: Study) -> str:
    model = study.params.active.model
    return (
        getattr(model, "repo", None) or getattr(model, "package", None) or getattr(model, "path", "unknown")
    )


def verdict_blocks(study: Study, verdicts: list[Verdict], confounds: list[Confound]) -> list[dict[str, Any]]:
    """One block per pair: its verdict on every set, and what can have caused the difference."""
    causes = {(confound.model, confound.reference): confound.sentence for confound in confounds}
    by_base = "Against base, the whole recipe is what differs: no part of it alone is shown to be the cause."
    return [
        {
            "pair": pair,
            "verdicts": [v for v in verdicts if (v.difference.model, v.difference.reference) == pair],
            "cause": causes.get(pair, by_base),
        }
        for pair in pairs_of(list(study.models))
    ]


def headlines(verdicts: list[Verdict]) -> list[str]:
    """What to know if one reads nothing else: the overall results, and the pairs for which there is none.

    A sentence per pair up to three variants; beyond, a line per reference.
    """
    overall = [v for v in verdicts if v.difference.on.name == OVERALL]
    if len(overall) > MANY_PAIRS:
        references = dict.fromkeys(v.difference.reference for v in overall)
        return [
            f"Overall, beside {reference} (nats): "
            + "; ".join(
                f"{v.difference.model} {v.short}" for v in overall if v.difference.reference == reference
            )
            for reference in references
        ]
    lines = []
    for against_base in (True, False):
        group = [v for v in overall if (v.difference.reference == BASE) == against_base]
        lines += [v.text for v in group if v.outcome != "not shown"]
        rest = [
            f"{v.difference.model} and {v.difference.reference}" for v in group if v.outcome == "not shown"
        ]
        if rest:
            lines.append(f"No difference is shown overall between {listed(rest, 'nor between')}.")
    return lines


def loss_rows(study: Study, comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {"model": name, "losses": [comparison.loss(name, on.name) for on in comparison.sets]}
        for name in study.models
    ]


def training_rows(study: Study) -> list[dict[str, Any]]:
    rows = []
    for name, trained in study.trained.items():
        resources, final = trained.record["resources"], trained.record["final"]
        rows.append(
            {
                "variant": name,
                "seconds": train_seconds(resources),
                "tokens_per_second": resources["tokens_per_second"],
                "peak_gib": peak_gib(resources),
                "on_gpu": resources.get("peak_reserved_gib") is not None,
                **final,
            }
        )
    return rows


def quarantine_rows(study: Study) -> list[dict[str, Any]]:
    """Per variant and source, where each row read went: kept, duplicate or quarantined; then its side of the split."""
    rows = []
    for variant, trained in study.trained.items():
        for source, counts in (trained.formatted or {}).get("sources", {}).items():
            reasons = counts["quarantined"]
            sides = (trained.split or {}).get("sources", {}).get(source, {})
            rows.append(
                {
                    "variant": variant,
                    "source": source,
                    **{key: counts[key] for key in ("read", "kept", "duplicate", "truncated")},
                    "quarantined": sum(reasons.values()),
                    "reasons": ", ".join(f"{reason}: {n:,}" for reason, n in reasons.items()),
                    **{
                        key: sides.get(key, 0) if sides else None
                        for key in ("train", "val", "test", "contaminated")
                    },
                }
            )
    return rows


def samples(study: Study) -> list[dict[str, Any]]:
    """Every fixed prompt with all models' answers: unselected, in the order of the list."""
    prompts = [sample["prompt"] for sample in study.models[BASE].samples]
    return [
        {
            "prompt": readable(prompt),
            "answers": [
                {"model": name, **model.samples[i], "answer": readable(model.samples[i]["answer"])}
                for name, model in study.models.items()
            ],
        }
        for i, prompt in enumerate(prompts)
    ]


def task_rows(study: Study) -> list[dict[str, Any]]:
    """Every task with each model's answer and the checks it failed, in the order asked."""
    return [
        {
            "kind": task["kind"],
            "prompt": readable(task["prompt"]),
            "answers": {
                name: {
                    "passed": model.tasks[i]["passed"],
                    "answer": readable(model.tasks[i]["answer"]),
                    "failed": [check for check, held in model.tasks[i]["checks"].items() if not held],
                }
                for name, model in study.models.items()
            },
        }
        for i, task in enumerate(study.models[BASE].tasks)
    ]


def readable(text: str) -> str:
    """A model's text without control characters that no browser shows (new lines and tabs stay)."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)


def reported(study: Study, comparison: Comparison) -> dict[str, Any]:
    """The student report's numbers beside this run's, for the variants that both have."""
    stated = YAML(typ="safe", pure=True).load((HERE / "reported.yaml").read_text(encoding="utf-8"))
    measured = {}
    for name in stated["variants"]:
        if name in study.trained:
            record = study.trained[name].record
            measured[name] = {
                "seconds": train_seconds(record["resources"]),
                "peak_gb": peak_gib(record["resources"]),
                "train_loss": record["final"]["train_loss"],
                "eval_loss": record["final"]["eval_loss"],
                "test_loss": comparison.loss(name, OVERALL),
                "seen": sum(record["exposure"]["conversations"].values()),
            }
    return stated | {"measured": measured, "same_setting": study.params.profile == FULL}


def warnings_of(study: Study, comparison: Comparison) -> list[str]:
    lines = []
    for name, trained in study.trained.items():
        lines += [f"{name}: {line}" for line in trained.record["schedule"].get("warnings", [])]
        lines += [f"{name}: {line}" for line in (trained.mixed or {}).get("warnings", [])]
        step, steps = trained.record["kept"].get("step"), trained.record["schedule"]["max_steps"]
        if step is not None and step < steps:
            rule = str(trained.record["kept"].get("by")).replace("_", " ")
            lines.append(
                f"{name}: the published adapter is that of step {step} of {steps} (kept by {rule}): what later steps learnt is not in its scores"
            )
        if trained.formatted:
            kept = sum(source["kept"] for source in trained.formatted["sources"].values())
            cut = sum(source["truncated"] for source in trained.formatted["sources"].values())
            if kept and cut / kept > MUCH_CUT:
                lines.append(
                    f"{name}: {cut:,} of {kept:,} conversations ({100 * cut / kept:.0f} %) are longer than max_length and were cut"
                )
    for on in comparison.sets:
        if comparison.losses and comparison.loss(BASE, on.name).low is None:
            lines.append(
                f"{on.name}: {on.n:,} conversations in {on.n_groups:,} groups are too few for an interval; give the test side a larger share"
            )
        elif on.n_groups < FEW_GROUPS:
            lines.append(
                f"{on.name}: intervals rest on {on.n_groups:,} independent groups only; below about {FEW_GROUPS} they tend to be too narrow"
            )
    lines += [
        f"{key} differs between variants ({', '.join(f'{v}: {value}' for v, value in by.items())}): times and losses are not from one setting"
        for key, by in origins.made_with(study).items()
        if len(set(map(str, by.values()))) > 1
    ]
    return lines


def limits_of(study: Study) -> list[str]:
    lines = [
        "A lower loss means that the model finds the held-out replies more likely: their style and wording. It does not mean that its answers are more often correct, useful or safe.",
        "The intervals cover which conversations were held out. They do not cover the seed: another seed draws other rows and another adapter, and may shift every number here. Runs with several seeds show by how much.",
        "The test rows come from the same sources as the training rows. Nothing here says how a model does on other kinds of questions.",
        "The tasks check what a program can: form, counts, words, whether code parses and satisfies a lint rule. Code that does so may still do something else than the code it replaces, and a short list of tasks shows large differences only.",
        "The answers to the fixed prompts are greedy and few. They are there to read, not to count.",
    ]
    if study.params.profile != FULL:
        lines.insert(
            1,
            f"Profile {study.params.profile}: its model and data are stand-ins for the full run's, small enough for this machine. Which variant is better there, these numbers cannot tell.",
        )
    return lines


def environment(escape: bool) -> Environment:
    env = Environment(autoescape=escape, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    env.filters |= {
        "fixed": fixed,
        "signed": signed,
        "count": count,
        "rate": rate,
        "cell": cell,
        "setting": setting,
        "data_uri": data_uri,
        "listed": listed,
    }
    return env


def render_html(report: Report) -> str:
    return (
        environment(escape=True)
        .from_string((HERE / "report.html.jinja").read_text(encoding="utf-8"))
        .render(report)
    )


def render_markdown(report: Report) -> str:
    text = (
        environment(escape=False)
        .from_string((HERE / "report.md.jinja").read_text(encoding="utf-8"))
        .render(report)
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def fixed(x: float | str | None, digits: int = 3) -> str:
    """Fixed decimals; a dash for what was not measured; words as they are."""
    if isinstance(x, str):
        return x
    return "–" if x is None else number(x, digits)


def signed(x: float | None, digits: int = 3) -> str:
    return "–" if x is None else ("+" if round(x, digits) > 0 else "") + number(x, digits)


def count(n: float | None) -> str:
    return "–" if n is None else f"{n:,.0f}"


def rate(x: float | None) -> str:
    """A learning rate: 2e-05 -> 2e-5."""
    if x is None:
        return "–"
    text = f"{x:.3g}" if x == 0 or abs(x) >= 1e-2 else f"{x:.2e}"
    return re.sub(r"(\.0+|(\.\d*?)0+)?e-0*", r"\2e-", text)


def setting(value: Any) -> str:
    """A param's value as params.yaml would write it; a dash where there is none."""
    if isinstance(value, float):
        return f"{value:g}" if abs(value) >= 1e-2 else rate(value)
    return "–" if value is None else yaml_value(value)


def cell(text: object) -> str:
    """A Markdown table's cell: one line, no bar that would end it, no HTML."""
    return " ".join(str(text).replace("|", "\\|").replace("<", "&lt;").split())


def data_uri(svg: str) -> str:
    """The figure inside the page. As an image of its own, so that its ids and styles touch nothing else there."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
