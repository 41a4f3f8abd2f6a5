"""What is known about each model that is served: for the page, from the files that training and the report wrote."""

from __future__ import annotations

import json
import re
import subprocess
from html import escape
from pathlib import Path
from typing import Any

from abctune.core.params import BASE
from abctune.core.records import SourceRecord, TrainingRecord
from app.engines.choose import gguf_of_base
from app.models import UNSCORED, Models
from app.optional_records import optional_record, summary_of
from app.page.style import colors_of
from app.service import Service

QUANTIZED = re.compile(r"(?i)\b(I?Q\d\w*|F16|BF16|F32)\.gguf$")


def facts(service: Service, name: str) -> dict[str, str]:
    """The text of each fact by its label, in display order; facts that no file states are left out."""
    models, root = service.models, root_of(service.models, name)
    found = {"Base": _base(models), "Served as": _served_as(service)}
    if name != BASE:
        found |= _training(models, name)
    if verdict := _verdict(models, name):
        found["Test loss" if name == BASE else "Against base"] = verdict
    if adapter := models.sha256(name):
        found["Adapter"] = f"SHA-256 {adapter[:12]}"
    return {label: words for label, words in (found | {"From": origin(root)}).items() if words}


def root_of(models: Models, name: str) -> Path:
    """The study that a model is from: two revisions may be served at once."""
    return models.adapters[name].path.parent.parent if name in models.adapters else models.root


def studies(models: Models) -> list[Path]:
    """The studies that the served models are from."""
    return list(dict.fromkeys([root_of(models, name) for name in models.adapters])) or [models.root]


def model_colors(models: Models) -> dict[str, str]:
    """Each served model's color in the report: by its variant's place in params.yaml; base is black."""
    known = [*models.variants, *(adapter.path.name for adapter in models.adapters.values())]
    by_variant = colors_of(dict.fromkeys(known))
    return {
        name: by_variant[name if name == BASE else models.adapters[name].path.name] for name in models.names
    }


def facts_html(service: Service, name: Any) -> str:
    """The facts as an HTML list; empty for a model that is not served."""
    if name not in service.models.names:
        return ""
    rows = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(words)}</dd>" for label, words in facts(service, name).items()
    )
    note = (
        f"Context {service.engine.context:,} tokens; older turns that no longer fit are left out, and the answer says so. "
        "A lower test loss means closer to the training data's style, not truer."
    )
    return f"<section aria-label='About the model'><h2>{escape(name)}</h2><dl>{rows}</dl><p>{escape(note)}</p></section>"


def origin(root: Path) -> str:
    """`workspace at 1a2b3c4`, or the revision's commit if the models are not the workspace's."""
    if re.fullmatch(r"[0-9a-f]{40}", root.name):
        return f"revision {root.name[:10]}"
    if not (root / ".git").exists():  # a Space, or a revision's files
        return ""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"workspace at {commit.replace('-dirty', ', edited since')}"


def _base(models: Models) -> str:
    source = optional_record(models.base / "source.json", SourceRecord)
    return (
        "" if source is None else f"{_file_of(source) or source.full_name} {_short(source.revision)}".strip()
    )


def _file_of(source: SourceRecord) -> str:
    return Path(source.file).name.split(".")[0] if source.file else ""


def _short(revision: str | None) -> str:
    return f"@ {revision[:10]}" if revision else ""


def _served_as(service: Service) -> str:
    """The engine and the base's precision in it."""
    base, name = service.models.base, service.engine.name
    if name != "llama.cpp":
        return f"{name}, weights in {dtype}" if (dtype := _dtype_of(base)) else name
    gguf, source = gguf_of_base(base), optional_record(base / "source.json", SourceRecord)
    file = str(source.file) if source and gguf == base / "base.gguf" else gguf.name if gguf else ""
    found = QUANTIZED.search(file)
    return f"{name}, {found[1].upper()}" if found else name


def _training(models: Models, name: str) -> dict[str, str]:
    """Data, steps and replicate of a variant."""
    record = optional_record(models.adapters[name].path / "training.json", TrainingRecord)
    if record is None:
        return {}
    seen = ", ".join(f"{n:,} {source}" for source, n in record.exposure.conversations.items() if n)
    kept, of = record.published_replicate.kept, len(record.replicates)
    rate, each = f"{record.schedule.peak_learning_rate:.2g}", record.conversations_per_step
    return {
        "Data": f"{seen} conversations seen ({record.exposure.epochs:.2g} epochs)",
        "Steps": f"{kept.step} of {record.schedule.max_steps}, {each} conversation{'s' * (each != 1)} each; peak rate {rate}",
        "Replicate": f"{record.published} of {of}, seed {record.published_replicate.seed}",
    }


def _verdict(models: Models, name: str) -> str:
    """The loss of base; for a variant, its recipe's verdict compared with base and the loss."""
    loss = models.losses.get(name)
    value = "" if loss is None else f"{loss:.3f} nats"
    if name == BASE:
        return value
    if name in models.unscored:
        return UNSCORED
    summary = summary_of(root_of(models, name))
    scored = summary.models.get(models.adapters[name].path.name) if summary else None
    return ", ".join(part for part in (scored and scored.vs_base, value) if part)


def _dtype_of(base: Path) -> str | None:
    """The precision that a model's config.json names."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        return config.get("dtype") or config.get("torch_dtype")
    except (OSError, ValueError, AttributeError):
        return None
