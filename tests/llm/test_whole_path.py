"""Every architecture's way through the project, as docs/models.md's table says it."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu_models import KINDS
from tests.llm.test_architectures import ARCHITECTURES
from tests.llm.whole_path import RESULTS, STEPS, path_of
from tests.llm.wrappers import WRAPPERS

COMMITTED = json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.faults  # two seconds each
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_each_step_ends_as_the_table_says(kind: str) -> None:
    assert path_of(kind) == COMMITTED[kind]


@pytest.mark.faults
@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_model_that_reads_images_too_goes_the_whole_way(kind: str) -> None:
    assert path_of(kind) == dict.fromkeys(STEPS, "yes")


def test_the_table_has_every_architecture_and_step() -> None:
    assert {kind: tuple(steps) for kind, steps in COMMITTED.items()} == dict.fromkeys(ARCHITECTURES, STEPS)


def test_a_gpu_is_asked_about_every_architecture_of_the_table() -> None:
    assert KINDS.keys() == ARCHITECTURES.keys()
