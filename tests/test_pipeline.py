"""dvc.yaml: what reruns when something changes, and that it names what the code really uses."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
LANES = ("mix", "format", "split", "train", "eval")


OUTPUTS = (
    "models/base",
    *(f"data/raw/{source}" for source in ("chat", "instruct")),
    *(f"data/mixed/{variant}.{kind}" for variant in "ABC" for kind in ("parquet", "json")),
    *(
        f"{room}/{v}"
        for v in "ABC"
        for room in ("data/formatted", "data/split", "models", "metrics/train", "metrics/eval")
    ),
    "metrics/eval/base",
    "metrics/summary.json",
    "plots",
)


def would_run(workspace, *targets: str) -> set[str]:
    """The stages that run if each of them changes its outputs."""
    printed = workspace.run("dvc", "repro", "--dry", "--force-downstream", *targets).stdout
    return set(re.findall(r"Running stage '([^']+)'", printed))


@pytest.fixture
def finished(workspace):
    """A project whose every stage counts as done: DVC has committed stand-ins for all outputs."""
    for out in OUTPUTS:
        path = workspace.root / out
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "stand-in").write_text(out)
    workspace.run("dvc", "commit", "--force")
    assert would_run(workspace) == set()
    return workspace


def test_a_changed_learning_rate_reruns_that_variants_train_and_eval_and_plot_only(finished):
    finished.set(variants__B__train__learning_rate=1e-4)
    assert would_run(finished) == {"train@B", "eval@B", "plot"}


def test_a_new_variant_is_a_params_edit_alone(finished):
    params = finished.params()
    finished.set(variants=params["variants"] | {"D": params["variants"]["B"]})
    assert would_run(finished) == {f"{stage}@D" for stage in LANES} | {"plot"}


def test_a_changed_report_never_retrains(finished):
    (finished.root / "stages/plot/__main__.py").open("a").write("\n# changed\n")
    assert would_run(finished) == {"plot"}


def test_exports_are_off_until_a_format_is_named(finished):
    finished.set(export__formats=["q8_0", "f16"])
    assert would_run(finished) == {"export@B-q8_0", "export@B-f16", "plot"}


def test_the_lock_belongs_to_dvc_yaml():
    """A stage of dvc.yaml that dvc.lock lacks was never run as committed."""
    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text())["stages"]
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    off = {"export"}  # while export.formats is empty
    assert {name.split("@")[0] for name in lock} - off == set(stages) - off


def imports_of(path: Path) -> set[str]:
    """The stages.* modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("stages.")}


def common_modules_of(stage: str) -> set[str]:
    """The stages/common files that a stage uses, those behind them included."""
    queue = list((ROOT / "stages" / stage).glob("*.py"))
    used: set[str] = set()
    while queue:
        for name in imports_of(queue.pop()):
            file = ROOT / Path(*name.split(".")).with_suffix(".py")
            relative = file.relative_to(ROOT).as_posix()
            if name.startswith("stages.common.") and file.exists() and relative not in used:
                used.add(relative)
                queue.append(file)
    return used


@pytest.mark.parametrize("name", ["fetch-model", "fetch", *LANES, "eval-base", "export", "plot"])
def test_a_stage_depends_on_the_code_it_imports(name):
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"][name]
    body = stage.get("do", stage)
    folder = re.match(r"python -m stages\.(\w+)", body["cmd"]).group(1)
    deps = {dep if isinstance(dep, str) else next(iter(dep)) for dep in body["deps"]}
    assert f"stages/{folder}" in deps
    declared = {dep for dep in deps if dep.startswith("stages/common/") and dep.endswith(".py")}
    assert declared == common_modules_of(folder)


@pytest.mark.parametrize("stage", ["fetch", *LANES, "export", "plot"])
def test_no_stage_imports_another(stage):
    for file in (ROOT / "stages" / stage).glob("*.py"):
        for name in imports_of(file):
            assert name.split(".")[1] in ("common", stage), f"{file} imports {name}"


def test_only_the_model_module_imports_unsloth():
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / "stages").rglob("*.py"), *(ROOT / "app").rglob("*.py")]
        if re.search(r"^\s*(from|import) unsloth\b", path.read_text(), re.M)
    }
    assert importers == {"stages/common/model.py"}
