"""Files as people have them (tests/fetch/cases): the rows that fetch reads, or the words it refuses them with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from abctune.core.errors import UserError
from stages.fetch import json_files
from stages.fetch.data_files import data_files
from stages.fetch.json_files import JsonStream
from stages.fetch.records import read_files, read_records
from tests.fetch.conftest import ProjectHere, jsonl

FOLDER = Path(__file__).parent / "cases"
CASES: dict[str, dict[str, Any]] = YAML(typ="safe").load((FOLDER / "cases.yaml").read_text())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["messages", "n", "x"]), VALUES, max_size=3), max_size=5)


def test_every_file_is_in_the_table() -> None:
    assert {path.name for path in FOLDER.iterdir()} - {"cases.yaml"} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_its_rows_or_is_told_by_what_it_is(name: str) -> None:
    case, path = CASES[name], FOLDER / name
    if "refused" in case:
        with pytest.raises(UserError) as refusal:
            list(read_records(path, name))
        assert case["refused"] in str(refusal.value) and name in str(refusal.value)
        return
    if path.is_dir():
        found = data_files([str(path)], "KEY")
        records = list(read_files(found.files))
        assert [note.removeprefix(f"{path}: ") for note in found.notes] == case.get("notes", [])
    else:
        records = list(read_records(path, name))
    assert len(records) == case["rows"]
    assert [record.text for record in records[:1]] == ([case["first"]] if case["rows"] else [])
    assert sum(record.problem is not None for record in records) == case.get("problems", 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
@given(ROWS, st.sampled_from(["list", "pretty list", "pretty", "joined", "under a key"]), st.integers(1, 40))
def test_json_of_any_layout_is_read_as_the_json_module_reads_it(
    rows: list[dict[str, Any]], layout: str, chunk: int
) -> None:
    text = {
        "list": lambda: json.dumps(rows),
        "pretty list": lambda: json.dumps(rows, indent=2, ensure_ascii=False),
        "pretty": lambda: "\n".join(json.dumps(row, indent=1) for row in rows),
        "joined": lambda: "".join(map(json.dumps, rows)),
        "under a key": lambda: json.dumps({"version": [1], "rows": rows, "end": {}}),
    }[layout]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_files, "CHUNK", chunk)  # so that every value crosses the window's border
        read = list(JsonStream(io.StringIO(text), "x.json").rows())
    assert read == (rows if rows or layout != "under a key" else [{"version": [1], "rows": [], "end": {}}])


def read_rows(value: Any, indent: int | None = 1) -> list[Any]:
    return list(JsonStream(io.StringIO(json.dumps(value, indent=indent)), "x.json").rows())


# What stands next to a list is looked at first, unless the list is longer than a row may be: then its items come one by one.
@pytest.mark.parametrize(("number", "longest"), [(3, 1_000_000), (150, 1_000_000), (150, 100)])
def test_of_a_list_of_any_length_nothing_that_stands_next_to_it_is_lost(
    number: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "RECORD_CHARACTERS", longest)
    monkeypatch.setattr(json_files, "CHUNK", 50)
    rows = [{"text": "2+3?", "label": n} for n in range(number)]
    for name, value in (("test", rows), ("more", [{"text": "1+1?"}]), ("persona", "A pirate.")):
        for fields in ({"data": rows, name: value}, {name: value, "data": rows}):
            with pytest.raises(UserError, match=f"'{name}'"):
                read_rows(fields)
    about = {"version": 1, "data": rows, "num_rows_total": number, "system": ""}
    assert read_rows(about) == rows
    assert read_rows({"description": "Sums.", "examples": rows}) == rows


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("number", [3, 150])
def test_the_number_of_items_does_not_decide_what_a_file_means(number: int, indent: int | None) -> None:
    pairs = [{"input": f"{n}+1?", "target": str(n + 1)} for n in range(number)]
    shots = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(number)]
    for row in (
        {"question": "Which?", "items": pairs, "answer": "None."},
        {"items": pairs, "answer": "None.", "question": "Which?"},
        {"examples": shots, "instruction": "Add", "output": "5"},
        {"instruction": "Add", "data": pairs, "output": "5"},
        {"question": "Which?", "items": pairs},
    ):
        assert read_rows(row, indent) == [row]
    for key, items in (("examples", pairs), ("records", shots), ("data", pairs)):
        assert read_rows({"description": "Sums.", key: items}, indent) == items
    with pytest.raises(UserError, match="has 'context' next to a list of rows"):
        read_rows({"context": "Sums.", "examples": shots}, indent)


@pytest.mark.parametrize("number", [3, 150])
def test_an_object_that_may_be_one_row_or_many_is_refused_and_both_remedies_work(number: int) -> None:
    examples = [{"input": f"{n}+1?", "target": str(n + 1)} for n in range(number)]
    task = {"description": "Sums.", "metrics": ["bleu"], "examples": examples}
    with pytest.raises(UserError) as refusal:
        read_rows(task)
    for told in ("x.json", "'metrics'", "'examples'", "write that list alone, [ ... ]", "[{ ... }]"):
        assert told in str(refusal.value)
    assert read_rows(examples) == examples
    assert read_rows([task]) == [task]


# fmt: off
ABOUT = [
    "description", "dataset", "model", "task", "$schema", "schema_version", "dataset_version", "createdAt", "updatedAt",
    "exportDate", "date_created", "tags", "keywords", "categories", "stats", "splits", "columns", "fields", "label_names",
    "task_type", "model_name", "Creator", "publisher", "release", "year", "generator", "pagination", "cursor", "message",
    "code", "doi", "_meta",
]
# fmt: on


@pytest.mark.parametrize("key", ["data", "records"])
def test_what_is_about_the_file_is_left_out_and_told(key: str, here: ProjectHere) -> None:
    rows = [{"prompt": "2+3?", "completion": "5"}]
    for name in ABOUT:
        assert read_rows({name: "2024", key: rows}) == rows
        assert read_rows({key: rows, name: {"a": ["b"]}}) == rows
    numbers = {"num_samples": 1, "numConversations": 1, "seed": 7, "shuffled": True, "mean_length": 2.5}
    here.own("x.json", json.dumps({**numbers, "description": "Sums.", key: rows}, indent=1).encode())
    here.source(origin="local", path="data/own/x.json")
    told = here.fetched("chat").stdout
    assert f"data/own/x.json: {', '.join(numbers)}, description left out: next to the rows" in told
    assert here.records() == rows


@pytest.mark.parametrize("key", ["data", "records"])
def test_what_may_belong_to_each_row_is_never_left_out(key: str) -> None:
    rows = [{"prompt": "2+3?", "completion": "5"}]
    turn = {"role": "system", "content": "Be brief."}
    names = ("context", "instructions", "system", "System-Prompt")
    beside: dict[str, Any] = dict.fromkeys(names, "Be brief.")
    beside |= {"persona": {"name": "Ann"}, "tools": [{"name": "add"}], "document": "Sums.", "prompt": "Add."}
    beside |= {"chat": "Hi", "message": turn, "meta": [turn], "splits": [{"prompt": "1+1?", "answer": "2"}]}
    for name, value in beside.items():
        with pytest.raises(UserError, match=f"'{name}'"):
            read_rows({name: value, key: rows})


def test_an_error_names_the_line_far_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "CHUNK", 10)
    text = "[\n" + '{"a": 1},\n' * 100 + "{bad}\n]"
    with pytest.raises(UserError, match="line 102 column 2"):
        list(JsonStream(io.StringIO(text), "x.json").rows())


def test_files_folders_and_globs_become_one_source_in_order(here: ProjectHere) -> None:
    for name, content in (
        ("b/2.csv", b"n\n3\n"),
        ("b/1.jsonl", jsonl({"n": 1}, {"n": 2})),
        *(
            (f"b/{name}", b"no data")
            for name in ("notes.txt", "README.md", "LICENSE", "1.jsonl.dvc", ".cache/x.txt")
        ),
        ("b/sub/more.xlsx", b"PK"),
        ("c-1.json", b'[{"n": 4}]'),
        ("c-2.json", b'[{"n": 5}]'),
    ):
        here.own(name, content)
    here.source(origin="local", path=["data/own/b", "data/own/c-*.json"])
    told = here.fetched("chat").stdout
    assert "data/own/b: notes.txt, sub/more.xlsx left out: no name that ends in .jsonl, .json, .csv," in told
    assert here.records() == [{"n": 1}, {"n": 2}, {"n": "3"}, {"n": 4}, {"n": 5}]
    about = here.about(here.raw / "chat")
    assert list(about["files"]) == ["b/1.jsonl", "b/2.csv", "c-1.json", "c-2.json"]
    assert about["path"] == "data/own/b, data/own/c-*.json"


def test_a_split_of_a_saved_dataset_is_read(here: ProjectHere) -> None:
    for file in (FOLDER / "h31_save_to_disk_splits").rglob("*"):
        if file.is_file():
            here.own(f"saved/{file.relative_to(FOLDER / 'h31_save_to_disk_splits')}", file.read_bytes())
    here.source(origin="local", path="data/own/saved", split="test")
    here.fetched("chat")
    assert here.records() == [{"instruction": "Name a colour", "input": "", "output": "Blue"}]
    here.source(origin="local", path="data/own/saved", split="val")
    told = "profiles.tiny.sources.chat.path: data/own/saved has the splits train, test; name one of them as `split`"
    assert told in here.refused("chat")
    here.source(origin="local", path="data/own/saved")
    assert "data/own/saved: the split 'train' is read, and not 'test'." in here.fetched("chat").stdout
    assert here.about(here.raw / "chat")["split"] == "train"
    here.source(origin="local", path="data/own/saved", split="test")
    here.own("saved/dataset_dict.json", b"{")
    assert "data/own/saved/dataset_dict.json cannot be read as JSON" in here.refused("chat")


def test_of_a_folder_with_a_test_file_train_alone_is_read_and_the_rest_is_named(here: ProjectHere) -> None:
    for name in ("train-1.jsonl", "train-2.csv", "test.jsonl", "notes.jsonl"):
        here.own(f"b/{name}", b"n\n2\n" if name.endswith("csv") else jsonl({"n": name}))
    here.source(origin="local", path="data/own/b")
    told = here.fetched("chat").stdout
    assert "data/own/b: the split 'train' is read, and not 'test', notes.jsonl." in told
    assert "profiles.tiny.sources.chat.split" in told
    assert here.records() == [{"n": "train-1.jsonl"}, {"n": "2"}]
    about = here.about(here.raw / "chat")
    assert (about["split"], list(about["files"])) == ("train", ["b/train-1.jsonl", "b/train-2.csv"])
    here.source(origin="local", path="data/own/b", split="test")
    here.fetched("chat")
    assert here.records() == [{"n": "test.jsonl"}]
    here.source(origin="local", path="data/own/b/train-1.jsonl", split="test")
    assert "data/own/b/train-1.jsonl has no splits; leave `split` out" in here.refused("chat")


def test_a_folders_card_says_which_files_are_which_split(here: ProjectHere) -> None:
    card = "---\nconfigs:\n- config_name: {}\n  data_files:\n  - {{split: train, path: a.jsonl}}\n  - {{split: dev, path: b.jsonl}}\n"
    for name in ("a.jsonl", "b.jsonl"):
        here.own(f"b/{name}", jsonl({"n": name}))
    here.own("b/README.md", card.format("default").encode() + b"---\n")
    here.source(origin="local", path="data/own/b", split="dev")
    here.fetched("chat")
    assert here.records() == [{"n": "b.jsonl"}]
    two = card.format("one") + "- config_name: two\n  data_files: a.jsonl\n---\n"
    here.own("b/README.md", two.encode())
    here.source(origin="local", path="data/own/b")
    line = here.refused("chat")
    assert (
        "Please pick one among the available configs: ['one', 'two']" in line
        and "name files, or a glob" in line
    )


def test_a_glob_may_match_folders(here: ProjectHere) -> None:
    for name in ("x/b/1.jsonl", "x/c.jsonl"):
        here.own(name, jsonl({"n": name}))
    here.source(origin="local", path="data/own/x/*")
    here.fetched("chat")
    assert here.records() == [{"n": "x/b/1.jsonl"}, {"n": "x/c.jsonl"}]


def test_a_folder_or_glob_without_data_is_an_error(here: ProjectHere) -> None:
    here.own("b/notes.txt", b"no data")
    for path, told in (
        ("data/own/b", "no file in data/own/b ends in .jsonl, .json,"),
        ("data/own/c-*.jsonl", "data/own/c-*.jsonl not found"),
    ):
        here.source(origin="local", path=path)
        assert f"profiles.tiny.sources.chat.path: {told}" in here.refused("chat")
    assert "`dvc add data/own/c-*.jsonl`, then `git add data/own/c-*.jsonl.dvc`" in here.refused("chat")


def test_rows_may_be_grouped_by_a_nested_column(here: ProjectHere) -> None:
    here.own("a.jsonl", jsonl({"meta": {"user": "u1"}}, {"meta": None}, {"meta": {"user": 2}}))
    here.params["profiles"]["tiny"]["sources"]["chat"]["group_by"] = "meta.user"
    here.fetched("chat")
    assert [row["group"] for row in here.rows()] == ["u1", None, "2"]
