"""Each variant's complete model card: what it is, what it was made from and how, and how it scores beside its siblings.

train writes a short card before there are results; this is the one that `python -m tools.publish` sends out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from abctune.study.comparison import Comparison
from abctune.study.exposure import Confound, ledger
from abctune.study.inputs import Study
from abctune.study.tasks import TaskComparison
from abctune.study.verdicts import Verdict
from stages.plot.report import KINDS, environment, limits_of

TEMPLATE = Path(__file__).parent / "card.md.jinja"
# The model hub's names for licences; whatever else is "other" there, with its own name beside it.
HUB_LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gemma", "bsd-3-clause")
LLAMA = "llama"


def card(
    variant: str,
    study: Study,
    comparison: Comparison,
    verdicts: Sequence[Verdict],
    tasks: TaskComparison,
    confounds: Sequence[Confound],
) -> str:
    """The card's Markdown, front matter included. Nothing in it depends on when or where the stage ran."""
    record = study.trained[variant].record
    base = origin_of(record.get("base_model") or {})
    llama = LLAMA in base["name"].lower() or base["license"].lower().startswith(LLAMA)
    mine = [v for v in verdicts if variant in (v.difference.model, v.difference.reference)]
    text = environment(escape=False).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return text.render(
        front_matter=front_matter(base, [origin_of(record) for record in study.raw.values()]),
        # Name and sentence are conditions of the Llama community licences.
        title=f"{'Llama-' if llama else ''}abctune-{variant}",
        llama=llama,
        variant=variant,
        profile=study.params.profile,
        base=base,
        sources=source_rows(variant, study),
        facts=next(line for line in ledger(study) if line["variant"] == variant),
        record=record,
        losses=[(name, [comparison.loss(name, on.name) for on in comparison.sets]) for name in study.models],
        comparison=comparison,
        test_of=study.params.evaluation.test_of,
        verdicts=mine,
        causes=[c for c in confounds if variant in (c.model, c.reference)],
        tasks=tasks,
        task_verdicts=[d for d in tasks.differences if variant in (d.model, d.reference)],
        kinds=KINDS,
        warnings=record["schedule"].get("warnings", []),
        limits=limits_of(study),
    )


def front_matter(base: dict[str, str], sources: Sequence[dict[str, str]]) -> str:
    """What the hub reads, as YAML. Base model and data sets only where they are on a hub: it checks the names."""
    licence = base["license"].lower()
    known = licence in HUB_LICENCES or licence.startswith(LLAMA)
    fields: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation"}
    fields |= {"license": licence} if known else {"license": "other", "license_name": base["license"]}
    if base["origin"] == "hub":
        fields |= {"base_model": base["name"], "base_model_relation": "adapter"}
    if on_hub := [source["name"] for source in sources if source["origin"] == "hub"]:
        fields["datasets"] = on_hub
    fields["tags"] = ["abctune", "lora"]
    out = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(fields, out)
    return out.getvalue().strip()


def origin_of(record: dict[str, Any]) -> dict[str, str]:
    """Name, pin, licence and kind of origin from a source.json."""
    return {
        "origin": record.get("origin", "local"),
        "name": record.get("repo") or record.get("package") or record.get("path") or "a local model",
        "pin": record.get("revision") or record.get("version") or "",
        "license": record.get("license") or "not stated",
    }


def source_rows(variant: str, study: Study) -> list[dict[str, Any]]:
    """One row per source of the mix: where it is from and how much of it the variant has seen."""
    exposure = study.trained[variant].record["exposure"]
    mixed = (study.trained[variant].mixed or {}).get("sources", {})
    return [
        {
            "source": source,
            **origin_of(study.raw.get(source, {})),
            "drawn": mixed.get(source, {}).get("drawn"),
            "seen": exposure["conversations"].get(source, 0),
            "supervised": exposure["supervised_tokens"].get(source, 0),
        }
        for source in study.params.variants[variant].mix
    ]
