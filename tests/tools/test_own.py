"""`make own`: a file of one's own becomes a source and a variant, after a look at what is trained on."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from abctune.core.params import PARAMS_FILE, load_params
from tests import small
from tools.own import main
from tools.tidy_params import as_dvc_writes, comments_of

ROOT = Path(__file__).parents[2]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def tickets(rows: int = 200) -> str:
    """A classification file: CSV with the columns text, label and id."""
    kinds = {"billing": "I was charged twice", "shipping": "the parcel is late", "refund": "my money back"}
    lines = [f'"Order {n}: {kinds[kind]}",{kind},{n}' for n in range(rows) for kind in [list(kinds)[n % 3]]]
    return "\n".join(["text,label,id", *lines]) + "\n"


def calls(rows: int = 30) -> str:
    """A tool-calling file in OpenAI's format."""

    def row(n: int) -> dict[str, Any]:
        call = {"name": "get_weather", "arguments": json.dumps({"city": f"City{n}"})}
        return {
            "tools": [WEATHER],
            "messages": [
                {"role": "user", "content": f"How is the weather in City{n}?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "type": "function", "function": call}],
                },
                {"role": "tool", "tool_call_id": "1", "content": f"{n} degrees"},
                {"role": "assistant", "content": f"It has {n} degrees."},
            ],
        }

    return "".join(json.dumps(row(n)) + "\n" for n in range(rows))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the committed params.yaml and a fetched tokenizer whose template has a place for tools."""
    monkeypatch.chdir(tmp_path)
    committed = (ROOT / PARAMS_FILE).read_text()
    PARAMS_FILE.write_text(committed.replace("max_length: 192", "max_length: 2048"))  # a token is a byte here
    tokenizer = small.chatml_tokenizer()
    tokenizer.chat_template = small.TOOLS_CHATML
    tokenizer.save_pretrained("models/base")
    return tmp_path


def own(file: str, **options: Any) -> None:
    defaults = {"name": None, "variant": "D", "column": [], "ignore": [], "dry_run": False}
    defaults |= {"group_by": None, "check": False}
    main(Path(file), **(defaults | options))


def refusal(capsys: pytest.CaptureFixture[str], file: str, **options: Any) -> str:
    """The one line of a refusal that changes nothing."""
    before, copied = PARAMS_FILE.read_text(), list(Path().rglob("data/own/*"))
    with pytest.raises(SystemExit):
        own(file, **options)
    assert PARAMS_FILE.read_text() == before and list(Path().rglob("data/own/*")) == copied
    [line] = capsys.readouterr().err.splitlines()
    return line


TEXT_AND_LABEL = {"column": ["user=text", "assistant=label"]}


def test_a_classification_file_becomes_a_source_and_a_variant_scored_on_all_sources(project, capsys):
    Path("tickets.csv").write_text(tickets())
    before = PARAMS_FILE.read_text()
    own("tickets.csv", **TEXT_AND_LABEL)
    out = capsys.readouterr().out
    assert "200 rows, 100.0% usable; 0 duplicates" in out
    assert "columns: text (200), label (200), id (200)" in out
    assert "turns: user (200), assistant (200)" in out
    assert "user\nOrder 0: I was charged twice<|im_end|>" in out and "«billing<|im_end|>»" in out
    params = load_params()
    assert params.sources["tickets"].columns == {"user": "text", "assistant": "label"}
    assert {profile.sources["tickets"].path for profile in params.profiles.values()} == {
        "data/own/tickets.csv"
    }
    assert set(params.variants["D"].mix) == {"chat", "instruct", "tickets"}
    assert params.evaluation.test_of == "D"
    assert params.variants["D"].mix["tickets"] * params.active.data.rows_scale >= 200
    assert params.train_of("D").model_dump() == params.train_of("C").model_dump()
    assert "Its 40 steps see 40 of about 800 rows; to see more, raise variants.D.train.max_steps." in out
    after = PARAMS_FILE.read_text()
    assert as_dvc_writes(after) == after
    assert Counter(comments_of(before)) == Counter(comments_of(after))
    # Headings stay where they were: above the section that they are about.
    assert "A new variant is an entry here" in after[after.index("  tickets:") : after.index("\nvariants:")]
    assert after.index("  D:") < after.index("# What all variants share.") < after.index("\ntrain:")
    assert after.index("origin: local") < after.index("    general: # text of another kind")
    assert Path("data/own/tickets.csv").read_text() == tickets()


def test_a_tool_calling_file_is_read_by_itself_and_calls_are_supervised(project, capsys):
    Path("calls.jsonl").write_text(calls())
    own("calls.jsonl", variant="tools")
    out = capsys.readouterr().out
    assert "30 rows, 100.0% usable" in out and "tool (30)" in out
    supervised = [part.partition("»")[0] for part in out.split("«")[2:]]
    assert any("get_weather" in part and "City0" in part for part in supervised)
    assert not any("Weather of a city" in part for part in supervised)
    assert load_params().variants["tools"].mix["calls"] >= 30


def test_a_model_whose_template_has_no_tools_is_told_and_the_remedy_works(project, capsys):
    Path("calls.jsonl").write_text(calls())
    tokenizer = small.chatml_tokenizer()
    tokenizer.save_pretrained("models/base")
    remedy = "set profiles.tiny.model.chat_template: chatml-tools in params.yaml"
    assert remedy in refusal(capsys, "calls.jsonl")
    text = PARAMS_FILE.read_text()
    PARAMS_FILE.write_text(text.replace("chat_template: model", "chat_template: chatml-tools"))
    own("calls.jsonl")
    assert "30 rows, 100.0% usable" in capsys.readouterr().out


def test_labels_are_told_and_checked_on_demand(project, capsys):
    Path("tickets.csv").write_text(tickets())
    own("tickets.csv", **TEXT_AND_LABEL)
    assert "The replies are 3 labels: with `--check`" in capsys.readouterr().out
    Path("more.csv").write_text(tickets(60))
    own("more.csv", variant="E", check=True, **TEXT_AND_LABEL)
    assert "Answers are checked (choice)." in capsys.readouterr().out
    check = load_params().evaluation.checks["more"]
    assert check.kind == "choice" and check.labels == ("billing", "refund", "shipping")
    assert "      rows: 100\n\nexport:" in PARAMS_FILE.read_text()  # the next section stays apart


def test_answers_that_are_no_labels_have_no_check_and_calls_have_theirs(project, capsys):
    Path("sums.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}+1?", "answer": f"It is {n + 1}."}) + "\n" for n in range(20))
    )
    assert "--check: the replies are neither tool calls nor a few labels" in refusal(
        capsys, "sums.jsonl", check=True
    )
    row = json.loads(calls(1))
    called = row["messages"][1]
    rows = [row | {"messages": [{"role": "user", "content": f"Weather {n}?"}, called]} for n in range(9)]
    Path("calls.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    own("calls.jsonl", check=True)
    assert load_params().evaluation.checks["calls"].kind == "tool_call"


def test_rows_that_are_all_one_group_are_told_with_a_remedy_that_works(project, capsys):
    rows = [
        {"instruction": "Rate it.", "history": [], "output": f"Very good, {n}.", "person": n}
        for n in range(40)
    ]
    Path("rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refusal(capsys, "rated.jsonl", ignore=["person"])
    assert "the 40 rows are 1 group: rows with the same first message stay together" in line
    assert "`--group-by COLUMN`" in line
    own("rated.jsonl", group_by="person")  # which then counts as read
    assert load_params().active.sources["rated"].group_by == "person"
    few = [row | {"person": row["person"] % 4} for row in rows]
    Path("few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    own("few.jsonl", group_by="person", variant="E")
    assert "Warning: the 40 rows are 4 groups: rows with the same value of person" in capsys.readouterr().out


def test_rows_of_one_question_can_be_kept_together_by_that_column(project, capsys):
    rows = [{"question": f"Question {n % 20}?", "answer": f"Answer {n}."} for n in range(40)]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own("asked.jsonl", group_by="question")
    assert "40 rows, 100.0% usable" in capsys.readouterr().out


def test_rows_whose_questions_are_longer_than_max_length_are_told_a_length_that_works(project, capsys):
    rows = [{"question": "word " * 500 + str(n), "answer": f"Answer {n}."} for n in range(20)]
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refusal(capsys, "long.jsonl")
    found = re.search(r"raise profiles\.tiny\.data\.max_length in params\.yaml from 2048 to (\d+):", line)
    assert found
    text, changed = re.subn(
        r"max_length: 2048( # tokens; every row)", rf"max_length: {found[1]}\1", PARAMS_FILE.read_text()
    )
    assert changed == 1
    PARAMS_FILE.write_text(text)
    own("long.jsonl")
    told = capsys.readouterr().out
    assert "20 rows, 100.0% usable; 0 duplicates" in told
    assert (
        f"longest {int(found[1]):,}; 0 rows cut to profiles.tiny.data.max_length ({int(found[1]):,})" in told
    )


def test_a_few_rows_are_refused_or_warned_about(project, capsys):
    Path("one.csv").write_text(tickets(1))
    assert "1 row cannot be trained on and tested on; nothing was changed. Add rows" in refusal(
        capsys, "one.csv", **TEXT_AND_LABEL
    )
    Path("few.csv").write_text(tickets(5))
    own("few.csv", **TEXT_AND_LABEL)
    assert "Warning: of 5 rows there may be none to test on; add rows to the file." in capsys.readouterr().out


def test_a_column_whose_name_is_a_whole_question_can_be_left_out_as_the_message_says(project, capsys):
    name = "Anything else that you would like to tell us about how the order was handled, packed and sent?"
    rows = [{"question": f"Question {n}?", "answer": f"Answer {n}.", name: "No."} for n in range(20)]
    Path("survey.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert f"`--ignore '{name}'`" in refusal(capsys, "survey.jsonl")
    own("survey.jsonl", ignore=[name])
    assert load_params().sources["survey"].ignore == (name,)


def test_a_second_call_says_so_and_a_second_file_gets_its_own_variant(project, capsys):
    Path("tickets.csv").write_text(tickets())
    Path("calls.jsonl").write_text(calls())
    own("tickets.csv", **TEXT_AND_LABEL)
    before = PARAMS_FILE.read_text()
    own("tickets.csv", **TEXT_AND_LABEL)
    own("data/own/tickets.csv")
    assert "source 'tickets' of params.yaml already; nothing was changed" in capsys.readouterr().out
    assert PARAMS_FILE.read_text() == before
    assert "has a variant 'D' already; give another name by `--variant NAME`" in refusal(
        capsys, "calls.jsonl"
    )
    own("calls.jsonl", variant="E")
    assert set(load_params().variants["E"].mix) == {"chat", "instruct", "tickets", "calls"}


def test_another_file_of_the_same_name_replaces_nothing(project, capsys):
    Path("tickets.csv").write_text(tickets())
    own("tickets.csv", **TEXT_AND_LABEL)
    capsys.readouterr()
    Path("tickets.csv").write_text(tickets(3))
    assert "data/own/tickets.csv exists with other contents" in refusal(capsys, "tickets.csv")
    assert Path("data/own/tickets.csv").read_text() == tickets()


def test_a_file_that_cannot_be_used_is_refused_with_what_helps(project, capsys):
    Path("tickets.csv").write_text(tickets())
    line = refusal(capsys, "tickets.csv")
    assert "200 of 200 rows of tickets.csv cannot be used" in line and "`--column user=COLUMN" in line
    line = refusal(capsys, "tickets.csv", column=["user=text", "assistant=id"])
    assert "`--ignore label`" in line
    assert "write PART=COLUMN" in refusal(capsys, "tickets.csv", column=["text"])
    Path("login.jsonl").write_text("<!doctype html><html></html>")
    assert "login.jsonl is a web page (HTML)" in refusal(capsys, "login.jsonl")
    assert "no.jsonl not found" in refusal(capsys, "no.jsonl")
    Path("notes").mkdir()
    assert "FILE: no file in notes ends in .jsonl, .json," in refusal(capsys, "notes")
    Path("chat.jsonl").write_text(calls())
    assert "has a source 'chat' already; give another name by `--name NAME`" in refusal(capsys, "chat.jsonl")


def test_bytes_that_are_no_text_count_as_refused(project, capsys):
    Path("mixed.csv").write_bytes(tickets(3).encode() + "caf\xe9,billing,9\n".encode("latin-1"))
    line = refusal(capsys, "mixed.csv", **TEXT_AND_LABEL)
    assert "1 of 4 rows of mixed.csv cannot be used" in line
    assert "save the file as UTF-8 (if all of it is Windows-1252: `iconv -f WINDOWS-1252 -t UTF-8" in line


def test_bytes_of_a_parquet_file_are_learned_as_text_or_refused_and_left_out_where_they_are_no_part(
    project, capsys
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    answers = [f"Réponse {n}.".encode("latin-1" if n % 2 else "utf-8") for n in range(20)]
    rows = {"question": [f"Question {n}?" for n in range(20)], "answer": pa.array(answers, pa.binary())}
    pq.write_table(pa.table(rows), "bytes.parquet")
    assert "10 of 20 rows of bytes.parquet cannot be used" in refusal(capsys, "bytes.parquet")
    rows |= {"answer": ["Blue."] * 20, "image": answers}
    pq.write_table(pa.table(rows), "image.parquet")
    assert "`--ignore image`" in refusal(capsys, "image.parquet")
    own("image.parquet", ignore=["image"])
    assert "20 rows, 100.0% usable" in capsys.readouterr().out


@pytest.mark.parametrize("marks", [("1", "0"), ("1.0", "0.0")])
def test_rows_marked_not_to_be_learned_are_to_be_left_out_and_no_option_trains_them(project, capsys, marks):
    lines = [f"Sum {n}?,Answer {n},{marks[n % 2]}" for n in range(20)]
    Path("rated.csv").write_text("\n".join(["prompt,completion,weight", *lines]))
    for ignore in ([], ["weight"]):
        line = refusal(capsys, "rated.csv", ignore=ignore)
        assert (
            "10 of 20 rows" in line
            and "To use them, leave the rows out of the file, or set the weight to 1 if" in line
        )
    Path("rated.csv").write_text("\n".join(["prompt,completion,weight", *lines[::2]]))
    own("rated.csv")
    assert "10 rows, 100.0% usable" in capsys.readouterr().out


def test_labels_that_are_numbers_are_to_be_written_as_text(project, capsys):
    for label in (str, int, bool):
        rows = [{"text": f"Ticket {n}", "label": label(n % 2)} for n in range(20)]
        Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if label is str:
            own("labels.jsonl", dry_run=True, **TEXT_AND_LABEL)
        else:
            line = refusal(capsys, "labels.jsonl", **TEXT_AND_LABEL)
            assert 'To use them, write each as the text that is to be learned, as "1" or the label' in line


def test_a_column_that_no_row_has_or_that_is_named_twice_is_told_with_those_that_there_are(project, capsys):
    Path("asked.jsonl").write_text("".join(f'{{"Question": "{n}?", "Answer": "{n}"}}\n' for n in range(20)))
    given = ["user=question", "assistant=Answer"]
    line = refusal(capsys, "asked.jsonl", column=given)
    assert "--column user=question: no row has a column 'question'" in line
    assert "Name one of 'Question', 'Answer'" in line
    line = refusal(capsys, "asked.jsonl", column=[*given, "user=Question"])
    assert "'user' is given 2 times; name one column for it" in line
    own("asked.jsonl", column=["user=Question", "assistant=Answer"])
    assert "20 rows, 100.0% usable" in capsys.readouterr().out


def test_names_that_mean_something_else_are_refused_by_the_option(project, capsys):
    Path("general.jsonl").write_text(calls())
    line = refusal(capsys, "general.jsonl")
    assert (
        "'general' has a meaning of its own, so that no source has it; give another name by `--name NAME`"
        in line
    )
    for variant in ("base", "loss"):
        line = refusal(capsys, "general.jsonl", name="mine", variant=variant, dry_run=True)
        assert f"{variant!r} has a meaning of its own" in line and "`--variant NAME`" in line
    own("general.jsonl", name="mine", variant="mine")
    assert "mine" in load_params().variants


def test_a_new_file_is_named_with_what_makes_it_part_of_experiments_elsewhere(project, capsys):
    Path("my calls.jsonl").write_text(calls())
    own("my calls.jsonl")
    tracked = "`dvc add 'data/own/my calls.jsonl'` and `git add 'data/own/my calls.jsonl.dvc'`"
    assert f"Next: {tracked}, without which `dvc exp run --temp`" in capsys.readouterr().out


def test_of_a_folder_with_splits_train_or_the_named_one_is_added(project, capsys):
    for name in ("train", "test"):
        Path("mine").mkdir(exist_ok=True)
        Path(f"mine/{name}.jsonl").write_text(calls(30 if name == "train" else 20))
    told = "mine has the splits train, test; name one of them"
    assert told in refusal(capsys, "mine", split="dev")
    own("mine")
    out = capsys.readouterr().out
    assert "mine: the split 'train' is read, and not 'test'. Another one: `--split NAME`" in out
    assert out.count("\n30 rows") == 1 and load_params().active.sources["mine"].split == "train"


def test_a_folder_anywhere_is_read_and_what_is_left_out_of_it_is_named(project, capsys, monkeypatch):
    folder = Path(".hidden/mine")
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text(calls())
    for number in range(12):
        (folder / f"{number:02}.jsonl.bz2").write_text("BZh")
    Path("work").mkdir()
    shutil.copytree("models", "work/models")
    shutil.copy(PARAMS_FILE, "work")
    monkeypatch.chdir("work")
    own("../.hidden/mine", dry_run=True)
    out = capsys.readouterr().out
    assert "30 rows, 100.0% usable" in out
    assert (
        "../.hidden/mine: 00.jsonl.bz2, 01.jsonl.bz2," in out and "09.jsonl.bz2 and 2 more left out:" in out
    )


def test_the_readmes_example_prints_what_the_readme_shows(project, capsys):
    example = ROOT / "docs/tickets.csv"
    own(str(example), **TEXT_AND_LABEL, check=True)
    _, _, shown = (ROOT / "README.md").read_text().partition("$ make own FILE=docs/tickets.csv")
    shown = shown.partition("```")[0].splitlines()
    printed = capsys.readouterr().out.splitlines()
    # But for what depends on the real model's tokenizer and template.
    assert [shown[number] for number in (1, 2, 3, -1)] == [printed[number] for number in (0, 1, 2, -1)]
    assert next(line for line in example.read_text().splitlines()[1:]).split('"')[1] + "<|im_end|>" in shown


def test_a_dry_run_adds_nothing(project, capsys):
    Path("calls.jsonl").write_text(calls())
    before = PARAMS_FILE.read_text()
    own("calls.jsonl", dry_run=True)
    assert "100.0% usable" in capsys.readouterr().out
    assert PARAMS_FILE.read_text() == before and not Path("data/own").exists()


@pytest.mark.parametrize("suffix", ["tsv", "json", "parquet", "folder"])
def test_every_kind_of_file_is_added_and_named_as_it_is(project, suffix):
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(20)]
    file = Path(f"sums.{suffix}" if suffix != "folder" else "sums")
    if suffix == "folder":
        file.mkdir()
        (file / "a.json").write_text(json.dumps(rows[:10]))
        (file / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[10:]))
    elif suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == "json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("question\tanswer\n" + "".join(f"{r['question']}\t{r['answer']}\n" for r in rows))
    own(str(file))
    params = load_params()
    assert params.active.sources["sums"].path == f"data/own/{file.name}"
    assert params.variants["D"].mix["sums"] == 1000
    assert Path("data/own", file.name).exists()
