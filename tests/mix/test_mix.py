import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def write_raw(workspace, source, count):
    folder = workspace.root / "data/raw" / source
    folder.mkdir(parents=True)
    rows = pa.table(
        {
            "row": pa.array(range(count), pa.int64()),
            "record": pa.array([json.dumps({"n": n}) for n in range(count)]),
            "group": pa.array([None] * count, pa.string()),
        }
    )
    pq.write_table(rows, folder / "rows.parquet")
    source = {"origin": "local", "path": f"data/own/{folder.name}.jsonl", "license": "MIT", "rows": count}
    (folder / "source.json").write_text(json.dumps(source))


def mixed(workspace, variant):
    return pq.read_table(workspace.root / f"data/mixed/{variant}.parquet").to_pylist()


@pytest.fixture
def raw(workspace):
    write_raw(workspace, "chat", 100)
    write_raw(workspace, "instruct", 80)
    return workspace


def test_c_gets_exactly_bs_chat_rows_and_a_all_of_them(raw):
    for variant in "ABC":
        raw.stage("mix", variant)
    chat = {v: {row["row"] for row in mixed(raw, v) if row["source"] == "chat"} for v in "ABC"}
    assert chat["B"] == chat["C"] and len(chat["B"]) == 60
    assert chat["B"] < chat["A"]
    assert sum(row["source"] == "instruct" for row in mixed(raw, "C")) == 60


def test_rows_scale_scales_every_source(raw):
    raw.set(profiles__tiny__data__rows_scale=0.5)
    raw.stage("mix", "C")
    assert len(mixed(raw, "C")) == 60


def test_too_few_rows_are_taken_whole_with_a_warning(raw):
    raw.set(variants__A__mix={"chat": 500})
    done = raw.stage("mix", "A")
    assert "variants.A.mix.chat asks for 500 rows of chat, which has 100: all are taken" in done.stderr
    assert len(mixed(raw, "A")) == 100
    assert json.loads((raw.root / "data/mixed/A.json").read_text())["warnings"]


def test_a_source_that_params_no_longer_has_is_removed_from_what_mix_depends_on(raw):
    write_raw(raw, "old", 5)
    (raw.root / "data/raw/mine").mkdir()  # not fetch's
    raw.stage("mix", "A")
    folders = {path.name for path in (raw.root / "data/raw").iterdir()}
    assert folders - {".gitignore"} == {"chat", "instruct", "mine"}


def test_a_missing_source_is_one_line_that_names_the_file_and_the_stage(workspace):
    done = workspace.stage("mix", "A", check=False)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.strip() == (
        "error: data/raw/chat/rows.parquet not found; `dvc repro fetch@chat` makes it, or `dvc pull` brings it from the remote"
    )


def test_an_unreadable_source_is_named_and_nothing_is_written(raw):
    (raw.root / "data/raw/chat/rows.parquet").write_bytes(b"PAR1 this is no Parquet PAR1")
    done = raw.stage("mix", "A", check=False)
    assert done.returncode == 1 and "data/raw/chat/rows.parquet cannot be read" in done.stderr
    assert {path.name for path in (raw.root / "data/mixed").glob("*")} <= {".gitignore"}


def test_an_empty_source_is_an_error(workspace):
    write_raw(workspace, "chat", 0)
    done = workspace.stage("mix", "A", check=False)
    assert done.returncode == 1 and "data/raw/chat/rows.parquet has no rows" in done.stderr


def test_what_fetch_found_wrong_with_a_row_stays_with_it(raw):
    path = raw.root / "data/raw/chat/rows.parquet"
    rows = pq.read_table(path).append_column("problem", pa.array(["not UTF-8", *[None] * 99], pa.string()))
    pq.write_table(rows, path)
    raw.set(variants__A__mix={"chat": 500})
    raw.stage("mix", "A")
    assert {row["row"]: row["problem"] for row in mixed(raw, "A")} == {0: "not UTF-8"} | dict.fromkeys(
        range(1, 100)
    )


def test_how_many_rows_are_taken_is_said(raw):
    raw.set(profiles__tiny__data__rows_scale=0.5)
    assert "A: 60 of 100 rows of chat (120 x rows_scale 0.5)" in raw.stage("mix", "A").stdout
