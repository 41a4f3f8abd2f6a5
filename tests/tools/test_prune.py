"""`make prune`: what a removed variant leaves in the workspace."""

from __future__ import annotations

from tests.workspace import Workspace

OF_B = ("data/mixed/B.json", "data/mixed/B.parquet", "data/split/B", "models/B", "metrics/eval/B")


def test_outputs_of_a_removed_variant_are_listed_and_removed_on_request_alone(study: Workspace) -> None:
    assert study.tool("prune").stdout == "nothing is left over\n"
    variants = study.params()["variants"]
    study.set(variants={name: variants[name] for name in "AC"}, export__variants=[])
    (study.root / "checkpoints/B").mkdir(parents=True)
    listed = study.tool("prune", check=False)
    assert listed.returncode == 1 and "nothing was removed" in listed.stderr
    assert set(OF_B) | {"checkpoints/B"} <= set(listed.stdout.splitlines())
    assert all("/B" in line for line in listed.stdout.splitlines())
    assert all((study.root / path).exists() for path in OF_B)
    study.tool("prune", "--yes")
    assert not any((study.root / path).exists() for path in (*OF_B, "checkpoints/B"))
    assert (study.root / "models/A").exists() and (study.root / "models/base").exists()
    assert study.tool("prune").stdout == "nothing is left over\n"
