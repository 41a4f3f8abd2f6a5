"""Train and validation loss: each variant's are of its own rows, so two variants' may be no measure of the same."""

from __future__ import annotations

from abctune.study.exposure import recipe
from abctune.study.inputs import Study, Trained
from abctune.study.wording import listed


def are_on_same_rows(study: Study) -> bool:
    """Whether all variants drew the same rows and cut them at the same length, so that they validate on the same too."""
    data = [recipe(trained)["data"] for trained in study.trained.values()]
    return all(one == data[0] for one in data)


def validation_rows(trained: Trained) -> str:
    """`9 chat and 5 instruct`; empty where the variant does not validate while it trains."""
    if not any(len(curves["eval_loss"]) for curves in trained.curves.values()):
        return ""
    counts = {source: subsets.get("val", 0) for source, subsets in trained.split.sources.items()}
    return listed([f"{n:,} {source}" for source, n in counts.items() if n])


def own_rows_note(study: Study) -> str:
    """A sentence on which rows these losses are of; empty where all variants have the same data."""
    if are_on_same_rows(study):
        return ""
    rows = {name: validation_rows(trained) for name, trained in study.trained.items()}
    said = "; ".join(f"{name} {of}" for name, of in rows.items() if of)
    return (
        "Train and validation loss are computed on rows of each variant's own mix"
        + (f" (validation: {said})" if said else "")
        + ": do not compare them between variants with other data."
    )
