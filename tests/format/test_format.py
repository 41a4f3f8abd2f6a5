"""The stage as a whole: counts, quarantine, preview, errors."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abctune.llm.chat import prompt_ids
from abctune.llm.conversation import IGNORE, conversation_of
from abctune.llm.tokenizer import load_tokenizer
from tests import small


def write_mixed(workspace, records, source="chat", groups=None):
    """data/mixed/A.parquet from records: dictionaries, or raw text."""
    folder = workspace.root / "data/mixed"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "source": pa.array([source] * len(records)),
            "row": pa.array(range(len(records)), pa.int64()),
            "record": pa.array(
                [record if isinstance(record, str) else json.dumps(record) for record in records]
            ),
            "group": pa.array(groups or [None] * len(records), pa.string()),
        }
    )
    pq.write_table(table, folder / "A.parquet", row_group_size=16)


@pytest.fixture
def project(workspace, small_model):
    shutil.copytree(small_model, workspace.root / "models/base")
    return workspace


def summary(project):
    return json.loads((project.root / "data/formatted/A/summary.json").read_text())


def rows(project, name="rows"):
    return pq.read_table(project.root / f"data/formatted/A/{name}.parquet").to_pylist()


def test_every_row_read_is_kept_or_a_duplicate_or_in_quarantine_with_its_reason(project):
    good = small.chat_records(90)
    bad = ["no JSON", {"conversations": [{"from": "human", "value": "Hi"}]}, {"conversations": []}]
    write_mixed(project, [*good, *good[:7], *bad])
    project.set(format={"max_quarantined": 0.05})
    project.stage("format", "A")
    counts = summary(project)["sources"]["chat"]
    assert counts["read"] == 100 and counts["duplicate"] == 7 and counts["kept"] == 90
    assert counts["quarantined"] == {"empty conversation": 1, "no assistant turn": 1, "not JSON": 1}
    assert len(rows(project)) == 90
    first = rows(project, "quarantine")[0]
    assert (first["row"], first["reason"], first["record"]) == (97, "not JSON", "no JSON")


def test_over_the_limit_the_stage_says_why_and_leaves_what_was_there(project):
    write_mixed(project, small.chat_records(50))
    project.stage("format", "A")
    before = summary(project)
    write_mixed(project, [*small.chat_records(50), "no JSON"])
    done = project.stage("format", "A", check=False)
    assert done.returncode == 1
    assert "1 of 51 rows of chat (2.0%) cannot be used (not JSON: 1)" in done.stderr
    assert "format.max_quarantined = 0.01 in params.yaml" in done.stderr
    assert summary(project) == before
    assert [path.name for path in (project.root / "data/formatted").iterdir() if path.is_dir()] == ["A"]
    assert "The rows are in data/quarantine/A.parquet" in done.stderr
    [refused] = pq.read_table(project.root / "data/quarantine/A.parquet").to_pylist()
    assert (refused["row"], refused["record"]) == (50, "no JSON")


def test_a_field_that_nobody_reads_is_named_in_the_remedy_which_works(project):
    write_mixed(project, [{**record, "rationale": "why"} for record in small.chat_records(20)])
    done = project.stage("format", "A", check=False)
    assert done.returncode == 1 and "(unread field: rationale: 20)" in done.stderr
    assert "set sources.chat.ignore: [rationale]" in done.stderr
    project.set(sources__chat__ignore=["rationale"])
    project.stage("format", "A")
    assert summary(project)["sources"]["chat"]["kept"] == 20


# As GLM-4.7's: its prompt has a reply begin with thoughts unless they are switched off, and replies have none.
THOUGHTFUL = small.CHATML.replace(
    "+ message['content']", "+ ('</think>' if message['role'] == 'assistant' else '') + message['content']"
).replace(
    "'<|im_start|>assistant\n'",
    "'<|im_start|>assistant\n' + ('</think>' if enable_thinking is defined and not enable_thinking else '<think>')",
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = {
    "messages": [
        {"role": "user", "content": "Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "name": "weather"},
        {"role": "assistant", "content": "It rains."},
    ]
}


@pytest.mark.parametrize(
    ("template", "records", "reason", "named", "setting"),
    [
        (
            THOUGHTFUL,
            small.chat_records(10),
            "chat template rewrites earlier turns: 10",
            "template_args: {enable_thinking: false} in params.yaml, with which 8 of 8 rows that were tried can be used",
            {"template_args": {"enable_thinking": False}},
        ),
        (
            small.CHATML,
            [CALLED],
            "chat template has no place for tool calls: 1",
            "chat_template: chatml-tools in params.yaml, with which 1 of 1 rows that were tried can be used",
            {"chat_template": "chatml-tools"},
        ),
    ],
    ids=["an argument", "chatml-tools"],
)
def test_rows_that_the_template_refuses_are_usable_with_the_setting_that_the_message_names(
    project, template, records, reason, named, setting
):
    (project.root / "models/base/chat_template.jinja").write_text(template)
    project.set(sources__chat__schema="auto")
    write_mixed(project, records)
    done = project.stage("format", "A", check=False)
    assert done.returncode == 1 and f"({reason})" in done.stderr
    assert f"set profiles.tiny.model.{named}; to do without them" in done.stderr
    project.set(profiles__tiny__model=project.params()["profiles"]["tiny"]["model"] | setting)
    project.stage("format", "A")
    assert summary(project)["sources"]["chat"]["kept"] == len(records)


def test_where_no_setting_helps_a_copy_of_the_template_is_named(project):
    small.llama_tokenizer().save_pretrained(project.root / "models/base")
    project.set(sources__chat__schema="auto")
    thought = {"role": "assistant", "content": "Yo", "reasoning_content": "Hm"}
    write_mixed(project, [{"messages": [{"role": "user", "content": "Hi"}, thought]}])
    done = project.stage("format", "A", check=False)
    assert "(chat template has no place for reasoning: 1)" in done.stderr
    assert "set profiles.tiny.model.chat_template in params.yaml to models/own/NAME.jinja" in done.stderr


# As functionary's: it joins texts, so a call's arguments have to be one and a tool without a description is an error. What
# some words make it do stands for all other errors that a template has with one row.
EASILY_BROKEN = (
    "{% macro endless() %}{{ endless() }}{% endmacro %}"
    "{% for tool in tools or [] %}{{ '// ' + tool.function.description + tool.function.name }}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% if message.content == 'divide' %}{{ 1 // 0 }}{% elif message.content == 'recurse' %}{{ endless() }}"
    "{% elif message.content == 'raise' %}{{ raise_exception('not like this') }}{% endif %}"
    "{% for call in message.tool_calls or [] %}{{ '>>>' + call.function.name + call.function.arguments }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_an_error_of_the_template_is_the_reason_of_its_row_and_no_other_row_is_lost(project):
    (project.root / "models/base/chat_template.jinja").write_text(EASILY_BROKEN)
    project.set(sources__chat__max_quarantined=0.9, sources__chat__schema="auto")
    tool = {"type": "function", "function": {"name": "weather", "description": "Tells the weather."}}
    described, bare = CALLED | {"tools": [tool]}, CALLED | {"tools": [{"function": {"name": "weather"}}]}
    broken = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "Yo"}]}
        for word in ("divide", "recurse", "raise")
    ]
    write_mixed(project, [described, bare, *broken])
    project.stage("format", "A")
    reasons = {row["row"]: row["reason"] for row in rows(project, "quarantine")}
    assert sorted(reasons) == [1, 2, 3, 4]
    assert all(reason.startswith("chat template fails (") for reason in reasons.values())
    assert "division" in reasons[2] and "recursion" in reasons[3] and "not like this" in reasons[4]

    [row] = rows(project)
    messages, tools = conversation_of(row)
    prompt = prompt_ids(load_tokenizer(project.root / "models/base"), messages[:1], tools)
    assert row["input_ids"][: len(prompt)] == prompt
    learned = [token for token in row["labels"] if token != IGNORE]
    assert '>>>weather{"city": "Oslo"}<|im_end|>' in small.chatml_tokenizer().decode(learned)


def test_rows_that_a_source_says_to_drop_do_not_stop_the_stage_and_are_counted(project):
    long = {"conversations": [{"from": "human", "value": "word " * 40}, {"from": "gpt", "value": "Yo"}]}
    project.set(profiles__tiny__data__max_length=120, sources__chat__overlong="drop")
    write_mixed(
        project, [long, {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}]
    )
    project.stage("format", "A")
    counts = summary(project)["sources"]["chat"]
    assert (counts["kept"], counts["quarantined"]) == (1, {"longer than max_length": 1})
    write_mixed(project, [long])
    done = project.stage("format", "A", check=False)
    assert (
        done.returncode == 1
        and "no usable row; raise profiles.tiny.data.max_length from 120 to 2" in done.stderr
    )


def test_a_limit_of_the_sources_own_stands_for_the_common_one(project):
    write_mixed(project, [*small.chat_records(50), "no JSON"])
    project.set(sources__chat__max_quarantined=0.02)
    project.stage("format", "A")
    project.set(sources__chat__max_quarantined=0.01)
    done = project.stage("format", "A", check=False)
    assert done.returncode == 1 and "sources.chat.max_quarantined = 0.01" in done.stderr


def test_rows_have_ids_groups_and_lengths(project):
    record = {"conversations": [{"from": "human", "value": " Hi "}, {"from": "gpt", "value": "Yo"}]}
    other = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    write_mixed(project, [record, other, small.chat_records(1)[0]], groups=[None, None, "rule-7"])
    project.stage("format", "A")
    one, two, three = rows(project)
    assert one["messages"][0] == {"role": "user", "content": " Hi "}  # as it was written
    assert one["id"] != two["id"] and one["group"] == two["group"]  # the same opening message: one group
    assert three["group"] == "rule-7"
    assert one["n_tokens"] == len(one["input_ids"]) == len(one["labels"])
    assert one["n_supervised"] == 3  # Y, o, <|im_end|>


def test_a_conversation_with_nothing_left_to_learn_after_the_cut_is_quarantined(project):
    project.set(profiles__tiny__data__max_length=40, format={"max_quarantined": 1.0})
    long = {"conversations": [{"from": "human", "value": "word " * 40}, {"from": "gpt", "value": "Yo"}]}
    write_mixed(
        project,
        [
            long,
            *small.instruct_records(0),
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "w " * 40}]},
        ],
    )
    project.stage("format", "A")
    counts = summary(project)["sources"]["chat"]
    assert counts["quarantined"] == {"nothing supervised after truncation": 1}
    assert counts["truncated"] == 1 and rows(project)[0]["n_tokens"] == 40


def test_the_preview_marks_what_is_supervised(project):
    write_mixed(
        project, [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}]
    )
    project.stage("format", "A")
    preview = (project.root / "data/formatted/A/preview.txt").read_text()
    assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Yo<|im_end|>»\n" in preview


def test_a_missing_model_is_one_line_with_the_remedy(workspace):
    write_mixed(workspace, small.chat_records(3))
    done = workspace.stage("format", "A", check=False)
    assert done.returncode == 1
    assert done.stderr.strip().startswith(
        "error: models/base/tokenizer.json not found; `dvc repro fetch-model` makes it"
    )


def test_an_unknown_variant_is_named(project):
    done = project.stage("format", "Z", check=False)
    assert done.returncode == 1 and "no variant 'Z'; variants has A, B, C" in done.stderr
