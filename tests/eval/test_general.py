"""Text that no variant trained on, as rows to score."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abctune.core.errors import UserError
from abctune.core.params import load_params
from abctune.core.records import GENERAL
from abctune.llm.chat import prefix, prompt_ids
from abctune.llm.conversation import Message
from stages.eval.rows import documents, general_rows, windows
from tests import small


@pytest.fixture
def project(workspace, monkeypatch):
    monkeypatch.chdir(workspace.root)
    workspace.set(profiles__tiny__eval__general_windows=5, profiles__tiny__eval__general_tokens=40)
    (workspace.root / "data/general").mkdir(parents=True)
    return workspace


def write(project, texts: list[str], groups: list[str | None] | None = None) -> None:
    records = [json.dumps({"text": text}) for text in texts]
    table = {"record": records, "group": pa.array(groups or [None] * len(texts), pa.string())}
    pq.write_table(pa.table(table), project.root / "data/general/rows.parquet")


def test_every_token_counts_and_many_documents_come_before_long_ones(project):
    write(
        project, [f"{chr(97 + i)} plain sentence, " * 9 for i in range(8)], [f"g{i // 2}" for i in range(8)]
    )
    tokenizer = small.chatml_tokenizer()
    rows = general_rows(load_params(), tokenizer).to_pylist()
    assert len(rows) == 5 and {row["source"] for row in rows} == {GENERAL}
    assert len({row["group"] for row in rows[:4]}) == 4, (
        "a second piece of one group before the first of another"
    )
    assert len({row["id"] for row in rows}) == 5
    for row in rows:
        assert row["labels"] == row["input_ids"] and row["n_supervised"] == len(row["input_ids"]) - 1 == 39


def test_the_file_s_order_chooses_nothing(project):
    texts, groups = [f"{chr(97 + i)} plain sentence, " * 9 for i in range(8)], [f"g{i}" for i in range(8)]
    write(project, texts, groups)
    first = general_rows(load_params(), small.chatml_tokenizer())
    write(project, texts[::-1], groups[::-1])
    assert general_rows(load_params(), small.chatml_tokenizer()) == first


def test_a_beginning_of_text_token_stands_before_it_only_where_the_tokenizer_puts_one():
    assert prefix(small.chatml_tokenizer()) == []
    from tokenizers.processors import TemplateProcessing

    tokenizer = small.llama_tokenizer()
    start = ("<|begin_of_text|>", tokenizer.bos_token_id)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    assert prefix(tokenizer) == [tokenizer.bos_token_id]


def test_control_tokens_in_a_text_stay_text():
    tokenizer = small.chatml_tokenizer()
    question = [Message(role="user", content="a question")]
    prompt = prompt_ids(tokenizer, question)
    (ids,) = windows("a text with <|im_end|> in it", tokenizer, 100)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    assert tokenizer.decode(ids) == "a text with <|im_end|> in it"
    assert prompt_ids(tokenizer, question) == prompt, "and in a conversation's markup they stay tokens"
    assert list(windows("too short", tokenizer, 100)) == []


def test_lines_of_articles_are_joined_to_articles():
    lines = [
        " = First = \n",
        "",
        " Text .\n",
        " = = Section = = \n",
        " More .\n",
        " = Second = \n",
        " Other .\n",
    ]
    rows = [{"record": json.dumps({"text": line}), "group": None} for line in lines]
    found = list(documents(rows))
    assert [group for group, _ in found] == ["0", "1"]
    assert "More" in found[0][1] and found[1][1] == " = Second = \n Other .\n"


def test_rows_without_text_are_named(project):
    with pytest.raises(UserError, match=r"has no `text`.*profiles\.\*\.general"):
        list(documents([{"record": '{"messages": []}', "group": None}]))
    write(project, ["short"])
    with pytest.raises(UserError, match=r"profiles\.tiny\.general: no text of at least 16 tokens"):
        general_rows(load_params(), small.chatml_tokenizer())


def test_a_profile_may_do_without(project):
    project.set(profiles__tiny__eval__general_windows=0)
    assert general_rows(load_params(), small.chatml_tokenizer()).num_rows == 0
