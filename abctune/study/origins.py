"""Where the numbers come from: data revisions and their hashes, versions, hardware.

Not the commit nor the date: a report that follows from its inputs alone stays the same file when they do.
"""

from __future__ import annotations

from typing import Any

from abctune.core.records import SourceRecord
from abctune.study.inputs import Study


def data_origins(study: Study) -> dict[str, SourceRecord]:
    """Every source that a variant draws on, and the base model, by name."""
    base = next(iter(study.trained.values())).record.base_model
    return {**study.origins, "base model": base}


def made_with(study: Study) -> dict[str, dict[str, Any]]:
    """Versions and hardware per variant, keyed "torch", "gpu", ...: a cached variant may be older than the rest."""
    found: dict[str, dict[str, Any]] = {}
    for variant, trained in study.trained.items():
        for key, value in {**trained.record.versions, **trained.record.hardware}.items():
            if value is not None:
                found.setdefault(key, {})[variant] = value
    return found
