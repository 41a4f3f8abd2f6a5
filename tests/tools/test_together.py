"""`make repro JOBS=3`: variants at the same time, and the result is that of `dvc repro`."""

from __future__ import annotations

from tests.workspace import Workspace


def test_variants_at_the_same_time_leave_nothing_for_dvc_repro_to_do(workspace: Workspace) -> None:
    printed = workspace.tool("together", "--jobs", "3").stdout
    assert workspace.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"
    assert "Running stage" not in workspace.run("dvc", "repro").stdout
    for variant in "ABC":
        assert f"train@{variant}: Running stage 'train@{variant}':" in printed
    began = [line for line in printed.splitlines() if "Running stage" in line and "train@" in line]
    first_end = printed.index("train@A: Updating lock file")
    assert all(printed.index(line) < first_end for line in began)


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
