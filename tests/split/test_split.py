"""The stage as a whole, on formatted rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abctune.core.params import SplitParams
from abctune.core.provenance import dvc_folder_hash
from abctune.core.schemas import FORMATTED_ROWS as ROWS
from stages.split.buckets import subset_of
from tests import small

SPLIT = SplitParams(val=0.1, test=0.2)


def formatted(count, source="chat", seed=0, prefix="row"):
    found = []
    for number, record in enumerate(small.chat_records(count, seed)):
        messages = [
            {"role": ("user", "assistant")[n % 2], "content": t["value"]}
            for n, t in enumerate(record["conversations"])
        ]
        name = f"{prefix} {number}"
        ids = list(range(10))
        found.append(
            {
                "id": name,
                "group": name,
                "source": source,
                "messages": messages,
                "input_ids": ids,
                "labels": ids,
                "n_tokens": 10,
                "n_supervised": 10,
            }
        )
    return found


def write(workspace, variant, rows):
    folder = workspace.root / "data/formatted" / variant
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, ROWS), folder / "rows.parquet")


def sides(workspace, variant):
    folder = workspace.root / "data/split" / variant
    return {side: pq.read_table(folder / f"{side}.parquet").to_pylist() for side in ("train", "val", "test")}


def counts(workspace, variant):
    return json.loads((workspace.root / f"data/split/{variant}.json").read_text())["sources"]


@pytest.fixture
def rows():
    return formatted(200)


def test_every_row_lands_on_its_subset_in_training_order(workspace, rows):
    write(workspace, "A", rows)
    write(workspace, "C", rows[:100])
    workspace.stage("split", "A")
    for side, found in sides(workspace, "A").items():
        assert [row["id"] for row in found] == [
            row["id"] for row in rows if subset_of(row["group"], SPLIT) == side
        ]
    assert sum(counts(workspace, "A")["chat"][side] for side in ("train", "val", "test")) == 200


def test_a_row_held_out_for_one_variant_is_held_out_for_all(workspace, rows):
    write(workspace, "A", rows)
    write(workspace, "C", [*rows[50:150], *formatted(60, "instruct", 9, "other")])
    for variant in "AC":
        workspace.stage("split", variant)
    a, c = sides(workspace, "A"), sides(workspace, "C")
    held_out = {row["id"] for row in c["test"] + c["val"]}
    assert held_out and not held_out & {row["id"] for row in a["train"]}


def test_a_planted_near_copy_of_a_test_row_is_dropped_and_counted(workspace, rows):
    write(workspace, "C", rows)
    held = next(row for row in rows if subset_of(row["group"], SPLIT) == "test")
    name = next(name for name in (f"copy {n}" for n in range(100)) if subset_of(name, SPLIT) == "train")
    messages = [message | {"content": message["content"].upper()} for message in held["messages"]]
    write(workspace, "A", [*rows, held | {"id": name, "group": name, "messages": messages}])
    done = workspace.stage("split", "A")
    assert (
        counts(workspace, "A")["chat"]["contaminated"]
        == counts(workspace, "A")["chat"]["contaminated_near"]
        == 1
    )
    assert name not in {row["id"] for row in sides(workspace, "A")["train"]}
    assert "1 dropped as too near to a held-out row" in done.stdout


def test_a_source_that_loses_all_its_training_rows_is_an_error(workspace, rows):
    write(workspace, "C", rows)
    held = next(row for row in rows if subset_of(row["group"], SPLIT) == "test")
    name = next(name for name in (f"copy {n}" for n in range(100)) if subset_of(name, SPLIT) == "train")
    write(workspace, "A", [*rows, held | {"id": name, "group": name, "source": "instruct"}])
    done = workspace.stage("split", "A", check=False)
    assert done.returncode == 1
    assert "split of A leaves no training row of instruct: each of its 1 row is too near" in done.stderr


def test_the_stage_fails_if_a_held_out_row_is_left_in_train(workspace, rows, monkeypatch):
    """The check reads the files, so it finds what the sorting missed: here the sorting is switched off."""
    write(workspace, "C", rows)
    name = next(name for name in (f"copy {n}" for n in range(100)) if subset_of(name, SPLIT) == "train")
    held = next(row for row in rows if subset_of(row["group"], SPLIT) == "test")
    write(workspace, "A", [*rows, held | {"group": name}])  # the same id in a group that trains
    code = workspace.root / "stages/split/contamination.py"
    code.write_text(code.read_text().replace('return "exact"', "return None"))
    done = workspace.stage("split", "A", check=False)
    assert done.returncode == 1 and "training ids are held out too" in done.stderr
    assert not (workspace.root / "data/split/A").exists()


def test_too_few_rows_to_hold_any_out_is_an_error_that_names_the_params(workspace):
    few = [row for row in formatted(200) if subset_of(row["group"], SPLIT) == "train"][:5]
    write(workspace, "A", few)
    write(workspace, "C", few)
    done = workspace.stage("split", "A", check=False)
    assert done.returncode == 1
    assert (
        "leaves no val row" in done.stderr
        and "variants.A.mix" in done.stderr
        and "profiles.*.split" in done.stderr
    )


def test_rows_of_one_group_are_told_apart_from_too_few_rows(workspace):
    same = [row | {"group": "Hi"} for row in formatted(300)]
    write(workspace, "A", same)
    write(workspace, "C", formatted(200, "instruct", 9, "other"))
    done = workspace.stage("split", "A", check=False)
    assert done.returncode == 1
    assert "its 300 rows are 1 group (" in done.stderr and "profiles.*.sources.chat.group_by" in done.stderr
    write(workspace, "A", formatted(300))  # the remedy
    workspace.stage("split", "A")


def test_rows_that_are_all_near_name_the_thresholds_and_are_listed(workspace):
    rows = [
        row | {"messages": [{"role": "assistant", "content": "the same " * 40}]} for row in formatted(200)
    ]
    write(workspace, "A", rows)
    write(workspace, "C", rows)
    workspace.set(split__common=1.0)
    done = workspace.stage("split", "A", check=False)
    assert done.returncode == 1
    assert "split.common" in done.stderr and "data/quarantine/A-near.jsonl" in done.stderr
    listed = (workspace.root / "data/quarantine/A-near.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in listed} == {"near"} and len(listed) > 100
    workspace.set(split__common=0.1)  # the remedy
    workspace.stage("split", "A")
    assert not (workspace.root / "data/quarantine/A-near.jsonl").exists()


def test_a_new_version_of_abctune_leaves_what_train_reads_as_it_was(ready_to_train):
    """Each document of the data stages names the version; if train depended on one, a release would train everything."""
    root = ready_to_train.root
    before = {folder: dvc_folder_hash(root / folder) for folder in ("models/base", "data/split/B")}
    (root / "abctune/__init__.py").write_text('__version__ = "9.9.9"\n')
    ready_to_train.stage("fetch", "--model")
    for stage in ("mix", "format", "split"):
        ready_to_train.stage(stage, "B")
    for document in ("mixed/B.json", "formatted/B/summary.json", "split/B.json"):
        assert json.loads((root / "data" / document).read_text())["abctune"] == "9.9.9"
    assert before == {folder: dvc_folder_hash(root / folder) for folder in before}
