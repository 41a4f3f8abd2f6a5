"""Origin local, and the reading of files that it shares with origin hub."""

from __future__ import annotations

import datetime
import errno
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abctune.core.errors import UserError
from stages.fetch.records import read_records, serialise
from tests.fetch.conftest import ProjectHere, jsonl
from tests.fetch.test_hub import model_files, parquet

ROWS = [
    {"messages": [{"role": "user", "content": f"Ünïcode 你好 {n}"}], "topic": f"t{n % 2}"} for n in range(5)
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl(*ROWS)),
        ("a.ndjson", jsonl(*ROWS)),
        ("a.jsonlines", jsonl(*ROWS)),
        ("a.json", json.dumps(ROWS, indent=2).encode()),
        ("a.json", jsonl(*ROWS)),  # as some hubs' .json files are
        ("a.jsonl", b"\xef\xbb\xbf" + jsonl(*ROWS).replace(b"\n", b"\r\n\r\n")),  # as Windows writes it
        ("a.parquet", parquet(ROWS)),
    ],
)
def test_the_users_own_file_becomes_rows(here: ProjectHere, name: str, content: bytes) -> None:
    here.own(name, content)
    done = here.fetched("chat")
    assert "fetched chat: 5 rows" in done.stdout
    assert here.records() == ROWS
    about = here.about(here.raw / "chat")
    assert about["origin"] == "local"
    assert about["path"] == f"data/own/{name}"
    assert about["files"][name]["bytes"] == len(content)
    assert about["rows"] == 5


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", jsonl(*ROWS)), ("a.parquet", parquet(ROWS))])
def test_group_by_keeps_rows_together(here: ProjectHere, name: str, content: bytes) -> None:
    here.own(name, content)
    here.params["profiles"]["tiny"]["sources"]["chat"]["group_by"] = "topic"
    here.fetched("chat")
    assert [row["group"] for row in here.rows()] == ["t0", "t1", "t0", "t1", "t0"]


def test_a_group_by_that_no_row_has_is_an_error(here: ProjectHere) -> None:
    here.own("a.jsonl", jsonl(*ROWS))
    here.params["profiles"]["tiny"]["sources"]["chat"]["group_by"] = "subject"
    assert "no row has a value in 'subject', which group_by in params.yaml names" in here.refused("chat")


def test_groups_may_be_numbers(tmp_path: Path) -> None:
    assert [
        record.group for record in records(tmp_path, jsonl({"n": 7}, {"n": None}, {"n": [1]}), group_by="n")
    ] == ["7", None, "[1]"]


def test_a_broken_line_is_kept_for_format_to_count(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b'{"a": ', b'{"a": "\xff"}', b"9" * 5000, b"[" * 100_000, b'{"a": 2}']
    texts = [record.text for record in records(tmp_path, b"\n".join(lines))]
    assert texts[0] == '{"a": 1}'
    assert texts[1] == '{"a":'
    assert texts[2] == '{"a": "\N{REPLACEMENT CHARACTER}"}'
    assert texts[3:5] == ["9" * 5000, "[" * 100_000]
    assert texts[5] == '{"a": 2}'


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_missing_file_names_the_key(here: ProjectHere, name: str) -> None:
    here.source(origin="local", path=f"data/own/{name}")
    assert f"params.yaml: profiles.tiny.sources.chat.path: data/own/{name} not found" in here.refused("chat")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b""), ("a.jsonl", b"\n\n"), ("a.json", b"[]"), ("a.parquet", parquet(ROWS[:0]))],
)
def test_an_empty_file_is_an_error(here: ProjectHere, name: str, content: bytes) -> None:
    here.own(name, content)
    assert f"params.yaml: profiles.tiny.sources.chat: {name} holds no rows" in here.refused("chat")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"not parquet", "cannot be read as Parquet"),
        ("a.parquet", parquet(ROWS)[:-40], "cannot be read as Parquet"),
        ("a.parquet", b"", "cannot be read as Parquet"),
        ("a.json", b'[{"a": 1},', "cannot be read as a JSON list"),
        ("a.json", b'{\n"data":\n[1]\n}', "none of its rows (1) is a JSON object"),
        ("a.json", b'[{"a": 1},\n{"b": {"c": 1, "c": 2}}]', "the key 'c' stands twice in one object"),
        ("a.json", b'{"a": "x",\n"a": "y"}', "the key 'a' stands twice in one object"),
        ("a.jsonl", b"just some\nprose", "none of its rows (2) is a JSON object"),
        ("a.jsonl", b'{"a": "x", "a": "y"}', "the key 'a' stands twice in one object"),
        (
            "a.csv",
            b'q,a\n1,2\n"3,4\n5,6\n',
            "unexpected end of data in the row that begins at line 3; is a quote",
        ),
        (
            "a.csv",
            b"1;2\n3;4;5\n6;7;8\n",
            "none of its rows (2) has a cell for each column that the first line names",
        ),
        ("a.jsonl", "{}\n".encode("utf-16-le"), "is UTF-16 text without a byte order mark; save it as UTF-8"),
    ],
)
def test_an_unreadable_file_is_one_line_that_names_it(
    here: ProjectHere, name: str, content: bytes, message: str
) -> None:
    here.own(name, content)
    line = here.refused("chat")
    assert f"data/own/{name}" in line
    assert message in line


def test_a_line_with_a_key_twice_is_kept_as_it_stands_for_format_to_refuse(tmp_path: Path) -> None:
    twice = '{"prompt": "b", "prompt": "c"}'
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a"}}\n{twice}\n{{"prompt": "d"}}\n')
    assert [record.text for record in read_records(tmp_path / "a.jsonl", "a.jsonl")][1] == twice


@pytest.mark.parametrize("folder", ["v1.2", "release.final"])
def test_a_folder_may_have_a_dot_in_its_name(here: ProjectHere, folder: str) -> None:
    here.own(f"{folder}/a.jsonl", jsonl(*ROWS))
    here.source(origin="local", path=f"data/own/{folder}")
    here.fetched("chat")
    assert here.records() == ROWS


def test_a_file_outside_the_folder_that_dvc_watches_is_refused(here: ProjectHere) -> None:
    here.source(origin="local", path="elsewhere/a.jsonl")
    assert "profiles.tiny.sources.chat.path: 'elsewhere/a.jsonl' must lie under data/own/" in here.refused(
        "chat"
    )


def test_what_json_lacks_does_not_sink_a_source(tmp_path: Path) -> None:
    assert (
        serialise({"a": math.nan, "b": [math.inf, {"c": -math.inf}]})
        == '{"a": null, "b": [null, {"c": null}]}'
    )
    assert (
        serialise({"half": "\ud83d", "whole": "\U0001f600"})
        == '{"half": "\N{REPLACEMENT CHARACTER}", "whole": "😀"}'
    )
    line = rb'{"half": "\ud83d", "number": NaN}'
    assert [record.text for record in records(tmp_path, line)] == [
        '{"half": "\N{REPLACEMENT CHARACTER}", "number": null}'
    ]
    day = datetime.date(2024, 7, 26)
    pq.write_table(
        pa.Table.from_pylist([{"day": day, "raw": b"\xff", "x": math.nan}]), tmp_path / "a.parquet"
    )
    read = read_records(tmp_path / "a.parquet", "a.parquet")
    assert [record.text for record in read] == [
        '{"day": "2024-07-26", "raw": "\N{REPLACEMENT CHARACTER}\\udcff", "x": null}'
    ]


def test_parquet_whose_text_is_not_utf8_is_told_in_one_line(tmp_path: Path) -> None:
    text = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())  # as other programs write it
    pq.write_table(pa.table({"prompt": text}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has a column of text that is not UTF-8; write it again"):
        list(read_records(tmp_path / "a.parquet", "a.parquet"))


def test_a_second_fetch_writes_the_same_bytes(here: ProjectHere) -> None:
    here.own("a.jsonl", jsonl(*ROWS))
    here.fetched("chat")
    first = here.outputs()
    here.fetched("chat")
    assert here.outputs() == first


def test_a_failed_fetch_leaves_the_last_good_one(here: ProjectHere) -> None:
    here.own("a.jsonl", jsonl(*ROWS))
    here.fetched("chat")
    here.own("a.json", b"[{")
    assert "data/own/a.json cannot be read as a JSON list" in here.refused("chat")
    assert here.records() == ROWS


@pytest.mark.parametrize(
    "place", ["pyarrow.parquet.ParquetWriter.write_table", "stages.fetch.outputs.write_json"]
)
def test_a_full_disk_is_one_line(here: ProjectHere, place: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    here.own("a.jsonl", jsonl(*ROWS))
    here.monkeypatch.setattr(place, full)
    assert "no space left on the disk" in here.refused("chat")


def test_a_model_folder_of_the_users_own_is_copied(here: ProjectHere) -> None:
    folder = own_model(here, model_files(**{"optimizer.bin": b"pickle", "modeling.py": b"code"}))
    here.fetched("--model")
    wanted = {"config.json", "tokenizer.json", "model.safetensors"}
    assert {path.name for path in here.base.iterdir()} == wanted | {"source.json"}
    assert all((here.base / name).read_bytes() == (folder / name).read_bytes() for name in wanted)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.safetensors", "has no model.safetensors"),
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json (transformers writes it for most"),
    ],
)
def test_an_incomplete_model_folder_is_an_error(here: ProjectHere, missing: str, message: str) -> None:
    files = model_files(**{"vocab.json": b"{}", "merges.txt": b""})  # what a slow tokenizer is made of
    del files[missing]
    own_model(here, files)
    assert f"params.yaml: profiles.tiny.model.path: models/own/mine {message}" in here.refused("--model")


def test_the_index_says_which_files_the_shards_are(here: ProjectHere) -> None:
    files = model_files()
    shards = {"part_a.safetensors": files.pop("model.safetensors"), "part_b.safetensors": b"other"}
    index = json.dumps(
        {"weight_map": {"weight": "part_a.safetensors", "more": "part_a.safetensors"}}
    ).encode()
    folder = own_model(here, files | shards | {"model.safetensors.index.json": index})
    here.fetched("--model")
    copied = {path.name for path in here.base.iterdir()}
    assert "part_a.safetensors" in copied and "part_b.safetensors" not in copied
    (folder / "part_a.safetensors").unlink()
    assert "has no part_a.safetensors, which its model.safetensors.index.json names" in here.refused(
        "--model"
    )
    (folder / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json of models/own/mine is damaged" in here.refused("--model")


def test_shards_without_the_index_that_names_them_are_an_error(here: ProjectHere) -> None:
    files = model_files()
    files["model-00001-of-00001.safetensors"] = files.pop("model.safetensors")
    own_model(here, files)
    line = here.refused("--model")
    assert "has no model.safetensors (model-00001-of-00001.safetensors is no such file" in line
    assert "there is no model.safetensors.index.json that names it" in line


@pytest.mark.parametrize("config", [{"quantization_config": {"quant_method": "bitsandbytes"}},
                                    {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}}])  # fmt: skip
def test_a_quantized_model_is_an_error_that_names_the_other_way(
    here: ProjectHere, config: dict[str, Any]
) -> None:
    own_model(here, model_files(**{"config.json": json.dumps(config).encode()}))
    line = here.refused("--model")
    assert (
        "models/own/mine has quantized weights (config.json: quant_method bitsandbytes)" in line
        and "take the repository that has them in 16 or 32 bits (train.load_in_4bit: true" in line
    )


def test_weights_that_transformers_unpacks_are_taken(here: ProjectHere) -> None:
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    own_model(here, model_files(**{"config.json": json.dumps(config).encode()}))
    here.fetched("--model")


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("content", [b'{"eos_token_id": 2,}', b'{"cut": ', b"[]", b"\xff"])
def test_a_models_file_that_is_no_json_object_is_named(here: ProjectHere, name: str, content: bytes) -> None:
    own_model(here, model_files(**{name: content}))
    assert f"profiles.tiny.model.path: {name} of models/own/mine cannot be read (" in here.refused("--model")


def test_named_templates_are_copied_and_give_way_to_a_template_of_ones_own(here: ProjectHere) -> None:
    folder = own_model(here, model_files(**{"chat_template.jinja": b"theirs"}))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_bytes(b"{{ tools }}")
    here.fetched("--model")
    copied = here.base / "additional_chat_templates/tool_use.jinja"
    assert copied.read_bytes() == b"{{ tools }}"
    (here.root / "models/own/mine.jinja").write_text("mine")
    here.params["profiles"]["tiny"]["model"]["chat_template"] = "models/own/mine.jinja"
    here.fetched("--model")
    assert (here.base / "chat_template.jinja").read_text() == "mine" and not copied.exists()


def test_an_unknown_source_is_an_error(here: ProjectHere) -> None:
    assert "params.yaml: no source 'chatter'; sources has chat, instruct" in here.refused("chatter")


def own_model(here: ProjectHere, files: dict[str, bytes]) -> Path:
    folder = here.root / "models/own/mine"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    here.model(origin="local", path="models/own/mine", license="mine")
    return folder


def records(folder: Path, content: bytes, **options: Any) -> list[Any]:
    (folder / "a.jsonl").write_bytes(content)
    return list(read_records(folder / "a.jsonl", "a.jsonl", **options))


def test_a_row_whose_bytes_are_no_text_is_marked_and_one_that_has_the_replacement_character_is_not(
    tmp_path: Path,
) -> None:
    lines = b'{"a": "\xff"}\n{"a": "\xef\xbf\xbd"}\n{"a": "\\ud83d"}\n{"a": "\\ud83d\\ude00"}'
    assert [record.problem for record in records(tmp_path, lines)] == ["not UTF-8", None, "not UTF-8", None]
