"""Whether metrics/summary.json follows from the models' losses per conversation: computed again and compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.core.params import Params
from abctune.core.places import SUMMARY
from abctune.study.comparison import compare
from abctune.study.inputs import read_study
from abctune.study.served import compare_served
from abctune.study.summary import summary
from abctune.study.tasks import compare_tasks
from abctune.study.verdicts import verdicts_of
from tools.dotted import flat

# Another processor's arithmetic may move the last digit that summary.json keeps (4 of a loss).
ABSOLUTE, RELATIVE = 1.5e-4, 1e-6


def summary_faults(params: Params) -> Iterator[str]:
    """Every key of summary.json that the conversations do not bear out."""
    try:
        written = flat(read_json(SUMMARY, "plot"))
        study = read_study(params)
        comparison = compare(study)
        tasks = compare_tasks(study)
        again = flat(
            summary(study, comparison, verdicts_of(comparison), tasks, compare_served(study)).as_json()
        )
    except UserError as error:
        yield str(error)
        return
    for key in {**again, **written}:
        if not same(written.get(key), again.get(key)):
            yield f"{SUMMARY}: {key} is {written.get(key)}, but the conversations say {again.get(key)}; `dvc repro --force --single-item plot`"


def same(a: Any, b: Any) -> bool:
    """Whether two values of summary.json are equal, up to the rounding of another processor."""
    if isinstance(a, float | int) and isinstance(b, float | int):
        return math.isclose(a, b, abs_tol=ABSOLUTE, rel_tol=RELATIVE)
    return a == b
