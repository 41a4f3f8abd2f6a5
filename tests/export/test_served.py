"""An exported file is scored on the common test rows as it will be served."""

from __future__ import annotations

import json
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from abctune.core.errors import UserError
from abctune.core.files import read_table
from abctune.core.params import ExportFormat, exported_item, exported_stage, load_params
from abctune.core.schemas import SERVED
from abctune.llm.inference import load_for_inference
from abctune.llm.likelihood import conversation_nll
from abctune.llm.tokenizer import load_tokenizer
from stages.export import write
from stages.export.check import by_transformers, prefixes
from stages.served import files
from stages.served.__main__ import COLUMNS, main
from stages.served.files import dequantised, unpacked_dtype
from stages.served.rows import as_rendered

B = write.MODELS / "B"


@pytest.fixture
def exported(project):
    """The project with B exported in the formats that are asked for."""

    def export(fmt, of="B"):
        rows = read_table(project.root / "data/split/B/val.parquet", "split@B")
        return write.export(of, fmt, rows, {"chat_template": "model"}, "none")

    return export


@pytest.fixture(autouse=True)
def rows_of_this_tokenizer(project):
    """Without the rows that the project's tokenizer had cut otherwise, which has no token for "th"."""
    path = project.root / "data/split/C/test.parquet"
    rows = pq.read_table(path)
    kept = ["th" not in str(messages) for messages in rows["messages"].to_pylist()]
    pq.write_table(rows.filter(pa.array(kept)), path)


def common_rows():
    return pq.read_table("data/split/C/test.parquet")


def losses(model):
    rows = common_rows()
    return conversation_nll(model, rows["input_ids"].to_pylist(), rows["labels"].to_pylist(), 2048)


def served(fmt, of="B"):
    main(of, fmt)
    table = pq.read_table(f"metrics/served/{of}/{fmt}.parquet")
    assert table.schema.remove_metadata() == SERVED and set(table["format"].to_pylist()) == {fmt}
    rows = common_rows()
    for column in ("id", "group", "source", "n_supervised"):
        assert table[column].to_pylist() == rows[column].to_pylist()
    return table["nll"].to_pylist()


def test_a_file_has_its_adapters_loss_and_not_the_bases(project, exported, capsys, request):
    as_judged, of_base = (losses(load_for_inference(torch.float32, adapter)) for adapter in (B, None))
    assert of_base != pytest.approx(as_judged, rel=0.05)
    formats = {"q8_0": 0.02, "merged_16bit": 0.01} if "tied" in request.node.name else {"f16": 1e-3}
    for fmt, near in formats.items():
        record = exported(fmt)
        found = served(fmt)
        assert found == pytest.approx(as_judged, rel=near) and found != as_judged
        assert f"B {fmt}: loss " in capsys.readouterr().out
        if fmt != "merged_16bit":  # unpacked, the file says what llama.cpp says of it
            model = by_transformers(dequantised(GGUFReader(f"models/exported/B/{fmt}/B.{fmt}.gguf"), fmt))
            places = prefixes(pq.read_table("data/split/B/val.parquet"))
            loss = -sum(float(model(place.ids)[place.label]) for place in places) / len(places)
            assert loss == pytest.approx(record.file_loss, abs=0.01)


@pytest.mark.parametrize("project", ["tied"], indirect=True)
@pytest.mark.parametrize(("fmt", "near"), [("q8_0", 0.02), ("merged_16bit", 0.01)])
def test_base_is_scored_in_the_same_format(project, exported, monkeypatch, fmt, near):
    as_judged = losses(load_for_inference(torch.float32))
    assert exported(fmt, of="base").variant == "base"
    found = served(fmt, of="base")
    assert found == pytest.approx(as_judged, rel=near) and found != as_judged
    assert as_judged != pytest.approx(losses(load_for_inference(torch.float32, B)), rel=0.05)
    monkeypatch.setenv("DVC_STAGE", f"served-base@{fmt}")
    assert exported_item(load_params(), "base", "") == ("base", fmt)


@pytest.mark.parametrize("project", ["tied"], indirect=True)
def test_the_files_own_template_renders_the_rows(project, exported):
    exported("merged_16bit")
    plain = served("merged_16bit")
    folder = project.root / "models/exported/B/merged_16bit"
    own = folder / "chat_template.jinja"
    own.write_text("{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}" + own.read_text())
    with_system = served("merged_16bit")
    assert with_system != pytest.approx(plain, rel=1e-3)
    own.write_text(own.read_text().replace("message['content']", "message['content'] | upper"))
    with pytest.raises(SystemExit):
        main("B", "merged_16bit")


@pytest.mark.parametrize("project", ["tied"], indirect=True)
def test_a_template_that_changes_nothing_else_keeps_ids_and_labels(project):
    tokenizer = load_tokenizer(B)
    rows = common_rows().select(COLUMNS)
    same = as_rendered(rows, tokenizer, tokenizer.chat_template + "{# a comment #}")
    for row, other in zip(rows.to_pylist(), same.to_pylist(), strict=True):
        ids, labels = other["input_ids"], other["labels"]
        assert row["input_ids"][: len(ids)] == ids and row["labels"][: len(labels)] == labels
        assert sum(label != -100 for label in labels) == row["n_supervised"]
    with pytest.raises(UserError, match="renders no test row with the replies that were trained"):
        as_rendered(rows, tokenizer, tokenizer.chat_template.replace("message['content']", "'x'"))


@pytest.mark.parametrize("project", ["tied"], indirect=True)
def test_what_is_not_there_is_named_with_the_stage_that_makes_it(project, capsys):
    with pytest.raises(SystemExit):
        main("B", "q8_0")
    assert (
        "models/exported/B/q8_0 holds no exported model; `dvc repro export@B-q8_0` makes it"
        in capsys.readouterr().err
    )
    folder = project.root / "models/exported/B/merged_16bit"
    folder.mkdir(parents=True)
    AutoModelForCausalLM.from_pretrained("models/base").save_pretrained(folder)
    tokenizer = load_tokenizer(B)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    assert "dtype" in json.loads((folder / "config.json").read_text())
    with pytest.raises(SystemExit):
        main("B", "merged_16bit")
    assert "has no chat template of its own" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["base", "B"])
def test_a_stage_s_name_says_what_it_scores(monkeypatch, variant):
    for fmt in get_args(ExportFormat):
        monkeypatch.setenv("DVC_STAGE", exported_stage("served", variant, fmt))
        assert exported_item(load_params(), "", "") == (variant, fmt)


@pytest.mark.parametrize(
    ("weights_gib", "capability", "dtype"),
    [(4, (7, 5), torch.float32), (12, (7, 5), torch.float16), (12, (9, 0), torch.bfloat16)],
)
def test_a_file_is_unpacked_to_float32_where_the_gpu_holds_it(monkeypatch, weights_gib, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(files, "free_bytes", lambda: 14 * 2**30)
    monkeypatch.setattr(files, "capability", lambda: capability)
    assert unpacked_dtype(weights_gib * 2**30) == dtype
