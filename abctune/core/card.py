"""What every model card begins with, and the note that train puts next to an adapter until plot writes its card."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from ruamel.yaml import YAML

from abctune.core.licenses import terms_of
from abctune.core.records import SourceRecord, TrainingRecord

# The model hub's names for licenses; whatever else is "other" there, with its own name next to it.
HUB_LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gemma", "bsd-3-clause")
NOTE = """---
{front_matter}
---

# {title}

A LoRA adapter on {base}, variant {variant} of an abctune study with profile {profile}.{llama}

Its settings, library versions and hardware are in `training.json` next to this file. The model card, with the data it
was trained on and how it compares with the other variants, is the study's `plots/cards/{variant}.md`.
"""


def front_matter(base: SourceRecord, sources: Iterable[SourceRecord] = ()) -> str:
    """What the hub reads, as YAML. Base model and data sets only where they are on a hub: it checks the names."""
    license_ = base.license.lower()
    known = license_ in HUB_LICENSES or license_.startswith("llama")
    fields: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation"}
    fields |= {"license": license_} if known else {"license": "other", "license_name": base.license}
    if base.origin == "hub":
        fields |= {"base_model": base.name, "base_model_relation": "adapter"}
    if on_hub := [source.name for source in sources if source.origin == "hub"]:
        fields["datasets"] = on_hub
    fields["tags"] = ["abctune", "lora"]
    out = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(fields, out)
    return out.getvalue().strip()


def title(variant: str, base: SourceRecord) -> str:
    """The adapter's name. A model made from Llama has Llama in its name: a condition of its community licenses."""
    prefix = terms_of(base.license).prefix.replace(" ", "-")
    return f"{prefix}-abctune-{variant}" if prefix else f"abctune-{variant}"


def built_with(base: SourceRecord) -> str:
    """The sentence that the licenses of Llama and Qwen ask for, after a space; empty for other bases."""
    sentence = terms_of(base.license).sentence
    return f" {sentence}" if sentence else ""


def note(record: TrainingRecord, profile: str) -> str:
    """The README.md of a freshly trained adapter: what it is, its license, and where to read more."""
    base = record.base_model
    return NOTE.format(
        front_matter=front_matter(base),
        title=title(record.variant, base),
        base=f"{base.name} ({base.pin})" if base.pin else base.name,
        variant=record.variant,
        profile=profile,
        llama=built_with(base),
    )
