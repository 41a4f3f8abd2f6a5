"""`make repro JOBS=3`: variants at the same time, and the result is that of `dvc repro`."""

from __future__ import annotations

import threading

from tests.workspace import Workspace
from tools.together import ancestors, memory_settings, run_graph, with_share

GRAPH = {
    "fetch": set(),
    "mix@A": {"fetch"},
    "mix@B": {"fetch"},
    "train@A": {"mix@A"},
    "train@B": {"mix@B", "mix@A"},
    "plot": {"train@A", "train@B"},
}


class Log:
    """Runs stages by noting when they begin and end; one of them may wait until another has begun."""

    def __init__(self, fails: str = "", waits: str = "", for_: str = "") -> None:
        self.events: list[tuple[str, str]] = []
        self._fails, self._waits, self._for = fails, waits, for_
        self._begun = threading.Event()

    def __call__(self, stage: str) -> int:
        self.events.append(("begins", stage))
        if stage == self._for:
            self._begun.set()
        if stage == self._waits and not self._begun.wait(30):
            return 1
        self.events.append(("ends", stage))
        return int(stage == self._fails)


def test_a_stage_begins_when_what_it_needs_has_ended_and_no_later() -> None:
    log = Log(waits="mix@B", for_="train@A")  # which no stage of B's may hold up
    assert run_graph(GRAPH, 2, log) == []
    for stage, needs in GRAPH.items():
        begins = log.events.index(("begins", stage))
        assert all(log.events.index(("ends", need)) < begins for need in needs)
    alone = Log()
    assert run_graph(GRAPH, 1, alone) == []
    assert [what for what, _ in alone.events] == ["begins", "ends"] * len(GRAPH)


def test_what_needs_a_failed_stage_does_not_run_and_all_else_does() -> None:
    log = Log(fails="mix@B")
    assert run_graph(GRAPH, 2, log) == ["mix@B"]
    assert {stage for _, stage in log.events} == {"fetch", "mix@A", "mix@B", "train@A"}


def test_processes_share_a_gpus_memory_and_what_the_user_set_stays() -> None:
    assert with_share("", 4) == "per_process_memory_fraction:0.230"
    assert (
        with_share("expandable_segments:True", 2)
        == "expandable_segments:True,per_process_memory_fraction:0.480"
    )
    assert with_share("per_process_memory_fraction:0.4", 2) == "per_process_memory_fraction:0.4"


def test_torch_s_settings_are_those_that_a_training_would_have() -> None:
    assert memory_settings({"PYTORCH_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "b:2"}) == "a:1"
    assert memory_settings({"PYTORCH_CUDA_ALLOC_CONF": "b:2"}) == "b:2"
    assert memory_settings({}) in ("expandable_segments:True", "")


def test_a_mistake_in_params_is_told_once_before_any_stage(workspace: Workspace) -> None:
    workspace.set(variants__B__train__max_steps=-3)
    done = workspace.tool("together", check=False)
    assert done.returncode == 1 and "Running stage" not in done.stdout
    assert done.stderr.count("variants.B.train.max_steps") == 1


def test_the_stages_that_make_others_are_found() -> None:
    assert set(ancestors(GRAPH, {"mix@B"})) == {"fetch", "mix@B"}
    assert ancestors(GRAPH, {"plot"}) == GRAPH


def test_variants_at_the_same_time_leave_nothing_for_dvc_repro_to_do(workspace: Workspace) -> None:
    printed = workspace.tool("together", "--jobs", "3").stdout
    assert workspace.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"
    assert "Running stage" not in workspace.run("dvc", "repro").stdout
    for variant in "ABC":
        assert f"train@{variant}: Running stage 'train@{variant}':" in printed
    running, most = 0, 0
    for line in printed.splitlines():
        running += (": Running stage" in line) - (": Updating lock file" in line)
        most = max(most, running)
    assert 1 < most <= 3


def test_a_failed_stage_is_named_and_the_other_variants_end(workspace: Workspace) -> None:
    workspace.set(variants__B__train__learning_rate=1e30)
    done = workspace.tool("together", "--jobs", "2", check=False)
    assert done.returncode == 1 and "error: train@B failed" in done.stderr
    assert not (workspace.root / "models/B").exists() and not (workspace.root / "metrics/eval/B").exists()
    assert (workspace.root / "metrics/collected/A").exists() and (
        workspace.root / "metrics/collected/C"
    ).exists()
    workspace.set(variants__B__train__learning_rate=1e-3)
    workspace.tool("together")
    assert workspace.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"
