"""Sources that a variant trains on but that have no test rows: the comparison cannot see what it learned from them."""

from __future__ import annotations

from abctune.study.inputs import Study
from abctune.study.wording import listed


def untested(study: Study) -> dict[str, str]:
    """One sentence with the remedy for each variant that trains on a source without test rows."""
    test_of, found = study.params.evaluation.test_of, {}
    for name, trained in study.trained.items():
        missing = [source for source in trained.mixed.sources if source not in study.sources]
        if missing:
            found[name] = (
                f"{name} trains on {listed(missing)}, of which the test set has no row: it is scored on"
                f" {listed(study.sources)} alone, so what it learned from {listed(missing)} is not in any verdict."
                f" Add {listed(missing)} to variants.{test_of}.mix in params.yaml, or set evaluation.test_of to a"
                " variant whose mix has all sources, and run `dvc repro`."
            )
    return found
