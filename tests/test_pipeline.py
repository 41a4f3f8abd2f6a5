"""dvc.yaml: what reruns when something changes, and that it names what the code really uses."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.workspace import Workspace, make_workspace

ROOT = Path(__file__).parent.parent
PACKAGES = ("abctune", "stages", "tools", "app")
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
FOLDERS = {
    name: re.match(r"python -m stages\.(\w+)", stage.get("do", stage)["cmd"]).group(1)
    for name, stage in STAGES.items()
}
FOREACH_STAGES = tuple(name for name, stage in STAGES.items() if stage.get("foreach") == "${variants}")


OUTPUTS = (
    "data/own-files/model.json",
    *(f"data/own-files/sources/{name}.json" for name in ("chat", "instruct", "general")),
    "models/base",
    "data/general",
    *(f"data/raw/{source}" for source in ("chat", "instruct")),
    *(f"data/mixed/{variant}.{kind}" for variant in "ABC" for kind in ("parquet", "json")),
    *(f"data/split/{variant}.json" for variant in "ABC"),
    *(
        f"{room}/{v}"
        for v in "ABC"
        for room in (
            "data/formatted",
            "data/split",
            "models",
            "models/replicates",
            "metrics/train",
            "metrics/eval",
            "metrics/collected",
        )
    ),
    "metrics/eval/base",
    "metrics/summary.json",
    "metrics/study.json",
    "plots",
)


def would_run(workspace, *targets: str) -> set[str]:
    """The stages that run if each of them changes its outputs."""
    printed = workspace.run("dvc", "repro", "--dry", "--force-downstream", *targets).stdout
    return set(re.findall(r"Running stage '([^']+)'", printed))


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory, small_model):
    """A project whose every stage counts as done: DVC has committed stand-ins for all outputs."""
    project = make_workspace(tmp_path_factory.mktemp("finished"), small_model)
    for out in OUTPUTS:
        path = project.root / out
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "stand-in").write_text(out)
    project.run("dvc", "commit", "--force")
    assert would_run(project) == set()
    return project


@pytest.fixture
def finished(finished_once, tmp_path):
    """The same, for a test to change."""
    return Workspace(shutil.copytree(finished_once.root, tmp_path / "project", symlinks=True))


def test_a_changed_learning_rate_reruns_that_variants_train_and_eval_and_plot_only(finished):
    finished.set(variants__B__train__learning_rate=1e-4)
    assert would_run(finished) == {"train@B", "eval@B", "collect@B", "plot"}


def test_a_new_variant_is_a_params_edit_alone(finished):
    params = finished.params()
    finished.set(variants=params["variants"] | {"D": params["variants"]["B"]})
    assert would_run(finished) == {f"{stage}@D" for stage in FOREACH_STAGES} | {"plot"}


def test_a_changed_report_never_retrains(finished):
    (finished.root / "stages/plot/__main__.py").open("a").write("\n# changed\n")
    assert would_run(finished) == {"plot"}


def test_bytecode_beside_the_code_makes_nothing_out_of_date(finished):
    for folder in ("stages/train", "abctune/core"):
        cache = finished.root / folder / "__pycache__"
        cache.mkdir(exist_ok=True)
        (cache / "x.cpython-311.pyc").write_bytes(b"x")
    assert would_run(finished) == set()


def test_exports_are_off_until_a_format_is_named(finished):
    finished.set(export__formats=["q8_0", "f16"])
    files = {f"{stage}@B-{fmt}" for stage in ("export", "served") for fmt in ("q8_0", "f16")}
    of_base = {f"{stage}-base@{fmt}" for stage in ("export", "served") for fmt in ("q8_0", "f16")}
    assert would_run(finished) == files | of_base | {"plot"}


def test_the_lock_belongs_to_dvc_yaml():
    """A stage of dvc.yaml that dvc.lock lacks was never run as committed."""
    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text())["stages"]
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    off = {"export", "served", "export-base", "served-base"}  # while export.formats is empty
    assert {name.split("@")[0] for name in lock} - off == set(stages) - off


def imports_of(path: Path) -> set[str]:
    """Every module of this project that a file imports, anywhere in it, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def file_of(module: str) -> Path | None:
    """The file behind a dotted name; None if the name is a member of a module or a package."""
    path = ROOT / Path(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def imported_from(folder: Path) -> set[Path]:
    """The project's files that a folder's modules import, those behind them included."""
    queue, used = list(folder.rglob("*.py")), set()
    while queue:
        for file in filter(None, map(file_of, imports_of(queue.pop()))):
            if file not in used:
                used.add(file)
                queue.append(file)
    return used


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_it_imports(name):
    folder = FOLDERS[name]
    body = STAGES[name].get("do", STAGES[name])
    declared = {dep for dep in body["deps"] if dep.split("/")[0] in PACKAGES}
    folders = {file.parent.relative_to(ROOT).as_posix() for file in imported_from(ROOT / "stages" / folder)}
    used = {f"stages/{folder}"} | {"/".join(folder.split("/")[:2]) for folder in folders} - {
        "abctune",
        "stages",
    }
    assert declared == used


@pytest.mark.parametrize("stage", sorted(set(FOLDERS.values())))
def test_a_stage_imports_the_library_and_no_other_stage_tool_or_app(stage):
    for file in (ROOT / "stages" / stage).rglob("*.py"):
        for name in imports_of(file):
            assert name.split(".")[0] == "abctune" or name.split(".")[1:2] in ([], [stage]), (
                f"{file} imports {name}"
            )
            assert name.split(".")[0] in ("abctune", "stages"), f"{file} imports {name}"


def test_the_library_imports_nothing_above_it_and_its_parts_only_those_below():
    allowed = {"core": {"core"}, "llm": {"core", "llm"}, "study": {"core", "study"}}
    for part, below in allowed.items():
        for file in (ROOT / "abctune" / part).rglob("*.py"):
            for name in imports_of(file):
                package, *inner = name.split(".")
                assert package == "abctune", f"{file} imports {name}"
                assert not inner or inner[0] in below, f"{file} imports {name}"


def test_the_import_graph_has_no_circle():
    graph = {
        file: {found for name in imports_of(file) if (found := file_of(name)) and found != file}
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
    }
    # A package's own __init__ that re-exports its modules is not a circle by itself, so only real modules count.
    graph = {file: {f for f in behind if f.name != "__init__.py"} for file, behind in graph.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_one_module_imports_unsloth():
    importers = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*(from|import) unsloth\b", path.read_text(), re.M)
    }
    assert importers == {"stages/train/by_unsloth.py"}


def test_a_stages_entry_is_read_at_a_glance():
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "stages").glob("*/__main__.py")}
    assert len(lengths) >= 9 and {path.parent.name for path, n in lengths.items() if n > 75} == set()
