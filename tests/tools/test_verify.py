"""`python -m tools.verify`: whatever is changed behind DVC's back is named, and nothing else is."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from abctune.core.params import load_params
from tests.workspace import Workspace
from tools.verify.run import verify
from tools.verify.tracked import check_tracked

ADAPTER = "models/B/adapter_model.safetensors"
REPLICATE = "models/replicates/B/1/adapter_model.safetensors"  # the published one
UP_TO_DATE = "Data and pipelines are up to date."


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage(path: Path, how: Callable[[bytes], bytes]) -> None:
    """Change a file and nothing else about it, as a bad disk does: DVC goes by time and permissions."""
    about = path.stat()
    path.chmod(0o644)
    path.write_bytes(how(path.read_bytes()))
    path.chmod(about.st_mode)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def cached(project: Workspace, path: str) -> Path:
    """The cache's copy of a file."""
    digest = project.run("md5sum", path).stdout.split()[0]
    return project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


def committed(project: Workspace, *stages: str) -> None:
    """DVC takes the workspace as it is for what these stages (all, if none is named) made and read.

    Now only the content can tell.
    """
    project.run("dvc", "commit", "--force", *stages)
    assert check_tracked().faults == []


def train_and_eval(variants: str) -> list[str]:
    """The stages that make and read these variants' adapters."""
    return [f"{stage}@{variant}" for stage in ("train", "eval") for variant in variants]


def faults() -> list[str]:
    return verify(load_params()).faults


def verify_as_a_user(project: Workspace) -> subprocess.CompletedProcess[str]:
    return project.tool("verify", check=False)


def test_a_study_in_order_passes(study: Workspace) -> None:
    done = verify_as_a_user(study)
    assert (done.returncode, done.stderr) == (0, "")
    assert "summary.json follows from the conversations" in done.stdout


def test_a_flipped_bit_that_dvc_does_not_see_is_named(study: Workspace) -> None:
    assert UP_TO_DATE in study.run("dvc", "status").stdout
    damage(study.root / ADAPTER, flip)
    assert UP_TO_DATE in study.run("dvc", "status").stdout  # which is why verify is there
    done = verify_as_a_user(study)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"wrong: {ADAPTER} is damaged or was changed")
    assert "`dvc checkout --force models/B`" in lines[0]
    assert all(ADAPTER in line for line in lines)


def test_a_truncated_cache_object_is_named_before_and_after_dvc_checks_it_out(study: Workspace) -> None:
    copy = cached(study, ADAPTER)
    damage(copy, truncate)
    lines = faults()
    for line, path in zip(lines, (ADAPTER, REPLICATE), strict=True):  # one object: the same bytes
        assert line.startswith(f"{copy.relative_to(study.root)}, the cache's copy of {path}, is damaged")
        assert "dvc commit --force train@B" in line

    study.run("rm", "-r", "models/B")
    study.run("dvc", "checkout", "models/B")  # DVC says nothing
    assert UP_TO_DATE in study.run("dvc", "status").stdout
    found = faults()
    assert found[0].startswith(f"{ADAPTER} is damaged")
    assert "`dvc repro --force --single-item train@B`" in found[0]
    assert found[1].startswith(str(copy.relative_to(study.root)))


def test_the_remedy_for_a_cache_object_works(study: Workspace) -> None:
    copy = cached(study, ADAPTER)
    copy.unlink()
    lines = faults()
    assert len(lines) == 2 and all("is missing" in line for line in lines)
    study.run("dvc", "commit", "--force", "train@B")
    assert faults() == []


def test_the_remedy_for_a_workspace_file_works(study: Workspace) -> None:
    damage(study.root / ADAPTER, truncate)
    study.run("dvc", "checkout", "--force", "models/B")
    left = faults()
    if left:  # DVC believed the time of the file; then it must be told to look again
        study.run("rm", "-r", "models/B")
        study.run("dvc", "checkout", "models/B")
        left = faults()
    assert left == []


@pytest.mark.parametrize("seed", range(8))
def test_any_damage_to_any_file_is_named(study: Workspace, seed: int) -> None:
    """Of everything under data/, models/, metrics/ and plots/ and of the cache, one file at a time."""
    rng = random.Random(seed)
    rooms = ("data", "models/base", *(f"models/{v}" for v in "ABC"), "metrics", "plots", ".dvc/cache/files")
    kept = {".gitignore", "README.md"} if seed % 2 else {".gitignore"}
    files = [
        path
        for room in rooms
        for path in sorted((study.root / room).rglob("*"))
        if path.is_file() and path.name not in kept and "own" not in path.parts and path.stat().st_size
    ]
    path = rng.choice(files)
    damage(path, rng.choice((flip, truncate)))
    found = check_tracked().faults
    name = path.relative_to(study.root).as_posix()
    folder = "plots" if name.startswith("plots/") else name
    # data/votes is a dependency, no output: whoever changes it is told what is out of date.
    told = (name, folder, "plot is out of date") if name.startswith("data/votes/") else (name, folder)
    assert [line for line in found if line.startswith(told)], (name, found)


def test_a_file_too_many_and_a_folder_too_few_are_named(study: Workspace) -> None:
    (study.root / "models/A/more.txt").write_text("x")
    study.run("rm", "-r", "models/C")
    found = check_tracked().faults
    assert any(line.startswith("models/A/more.txt is in no list of dvc.lock") for line in found)
    assert any(line.startswith("models/C is not there; `dvc checkout") for line in found)


def test_a_lost_list_of_a_folder_is_named_and_the_folder_still_checked(study: Workspace) -> None:
    for listing in (study.root / ".dvc/cache/files").rglob("*.dir"):
        listing.unlink()
    damage(study.root / ADAPTER, flip)
    found = check_tracked().faults
    assert any("the cache's list of models/A, is missing" in line for line in found)
    assert any(line.startswith("models/B is damaged") for line in found)


def test_results_of_other_code_or_params_are_named(study: Workspace) -> None:
    (study.root / "stages/eval/__main__.py").open("a").write("\n# changed\n")
    study.set(variants__B__train__learning_rate=1e-3)
    found = faults()
    assert any(line.startswith("train@B is out of date: variants.B changed") for line in found)
    assert any(line.startswith("eval-base is out of date: stages/eval changed") for line in found)


def test_a_stage_that_never_ran_is_named(study: Workspace) -> None:
    params = study.params()
    study.set(variants=params["variants"] | {"D": params["variants"]["B"]})
    assert any(line.startswith("models/D has never been made; `dvc repro train@D`") for line in faults())


def without_a_layer(tensors: dict) -> dict:
    return dict(list(tensors.items())[1:])


def of_another_shape(tensors: dict) -> dict:
    name = next(iter(tensors))
    return tensors | {name: tensors[name][:, :-1].contiguous()}


def with_a_layer_more(tensors: dict) -> dict:
    return tensors | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)}


def test_an_adapter_that_does_not_fit_its_base_is_named(study: Workspace) -> None:
    changes = {"A": without_a_layer, "B": of_another_shape, "C": with_a_layer_more}
    for variant, change in changes.items():
        path = f"models/{variant}/adapter_model.safetensors"
        save_file(change(load_file(path)), path)
    committed(study, *train_and_eval("ABC"))
    for variant, line in zip(changes, faults(), strict=True):
        path = f"models/{variant}/adapter_model.safetensors"
        assert line.startswith(f"{path} does not fit models/base: base_model.model.model.layers.")


def test_values_that_are_no_numbers_and_an_adapter_of_another_base_are_named(study: Workspace) -> None:
    tensors = load_file(ADAPTER)
    name = list(tensors)[3]
    tensors[name][0, 0] = torch.nan
    save_file(tensors, ADAPTER)
    path = study.root / "models/C/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "someone/else"}))
    committed(study, *train_and_eval("BC"))
    values, base = faults()
    assert values.startswith(f"{ADAPTER} has values in {name} that are not finite")
    assert base.startswith("models/C/adapter_config.json is not that of a LoRA adapter on models/base")


def test_an_adapter_of_another_base_of_the_same_shapes_is_named(study: Workspace) -> None:
    path = study.root / "models/base/source.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "another"}))
    committed(study)
    assert [line.split(" was trained on another base model")[0] for line in faults()] == [
        f"models/{variant}" for variant in "ABC"
    ]


def test_a_changed_loss_of_one_conversation_is_named(study: Workspace) -> None:
    path = study.root / "metrics/eval/B/conversations.parquet"
    table = pq.read_table(path).to_pydict()
    table["nll"][0] += 30.0
    schema = pq.read_schema(path)
    pq.write_table(pq.read_table(path).from_pydict(table, schema=schema), path)
    study.stage("collect", "B")
    committed(study, "eval@B", "collect@B", "plot")
    found = faults()
    assert all(line.startswith("metrics/summary.json: ") for line in found)
    assert any(line.startswith("metrics/summary.json: B.loss.") for line in found)
    assert not any("summary.json: A.loss" in line for line in found)


def test_better_numbers_and_verdicts_written_into_the_summary_are_named(study: Workspace) -> None:
    path = study.root / "metrics/summary.json"
    summary = json.loads(path.read_text())
    summary["B"]["vs_base"] = "better by 0.50 [0.40, 0.60]"
    summary["C"]["loss"]["overall"] -= 0.001
    summary["verdict"]["B_vs_A"] = "better by 0.50 [0.40, 0.60]"
    path.write_text(json.dumps(summary))
    committed(study, "plot")
    found = faults()
    beginnings = ("B.vs_base", "C.loss", "verdict.B_vs_A is better by 0.50 [0.40, 0.60],")
    for beginning in beginnings:
        (line,) = (line for line in found if line.startswith(f"metrics/summary.json: {beginning}"))
        assert "but the conversations say" in line
    assert len(found) == len(beginnings)


def test_outside_a_repository_it_says_where_to_run(tmp_path: Path, study: Workspace) -> None:
    study.run("rm", "-r", ".dvc")
    done = verify_as_a_user(study)
    assert done.returncode == 1
    assert done.stderr.startswith("error: DVC: ")
    assert "Traceback" not in done.stderr


def test_a_variant_that_cannot_be_registered_and_leftovers_are_notes(study):
    """No faults: neither makes a result wrong."""
    path = study.root / "dvc.yaml"
    path.write_text(
        path.read_text().replace(
            "  C:\n    path: models/C\n    type: model\n", "  Z:\n    path: models/Z\n    type: model\n"
        )
    )
    shutil.copytree(study.root / "models/C", study.root / "models/D")
    study.git("tag", "D@v1.0.0")
    study.git("tag", "B@v1.0.0")
    done = study.tool("verify", check=False)
    assert "`git tag --delete D@v1.0.0`" in done.stdout and "B@v1.0.0" not in done.stdout
    assert (
        "note: dvc.yaml: `artifacts` lacks variant C; add `C: {path: models/C, type: model}` there"
        in done.stdout
    )
    assert "note: dvc.yaml: `artifacts` names Z" in done.stdout
    assert "note: left over from removed variants or sources: models/D; `make prune`" in done.stdout
