"""Every remedy that a message names: its commands and settings exist, and a test shows each kind of it to work."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from abctune.core.errors import UserError
from abctune.core.params import LoraParams, Params, TrainParams, Variant, load_params
from app.revision import fetch_revision
from tests.tools.test_verify import ADAPTER, cached, damage, flip, truncate
from tests.workspace import ROOT, Workspace
from tools.verify.run import verify

CODE = ("abctune", "stages", "tools", "app")
HOLE = "HOLE"  # what an f-string puts in
PROGRAMS = ("dvc", "git", "make", "python", "pip", "gto", "iconv", "nvidia-smi", HOLE)
READERS = {"read_json", "read_jsonl", "read_table", "read_record", "read_records", "reading"}
SETTING = re.compile(
    r"(?<![\w./])((?:profiles|train|lora|variants|sources|format|split|evaluation|export)(?:\.(?:\w+|<\w+>|\*))+)"
)


@cache
def literals() -> list[tuple[str, str]]:
    """(file and line, text) of every string in the code that is no docstring; HOLE for what an f-string puts in."""
    found = []
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            skipped = {id(part) for node in ast.walk(tree) for part in not_messages(node)}
            for node in ast.walk(tree):
                if id(node) not in skipped and (text := text_of(node)):
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", text))
    return found


def not_messages(node: ast.AST) -> Iterator[ast.AST]:
    """Docstrings, and the parts of f-strings, which are read as a whole."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        if isinstance(node.body[0] if node.body else None, ast.Expr):
            yield node.body[0].value
    elif isinstance(node, ast.JoinedStr):
        yield from (part for part in ast.walk(node) if part is not node)


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return ""


def commands(program: str) -> list[tuple[str, str]]:
    """(place, command) of what stands between backticks and begins with a program's name."""
    quoted = [(place, one) for place, text in literals() for one in re.findall(r"`([^`\n]+)`", text)]
    return [(place, one) for place, one in quoted if one.split()[0] == program]


@cache
def stage_names() -> frozenset[str]:
    return frozenset(YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"])


def test_dvc_takes_every_command_that_a_message_names() -> None:
    from dvc.cli.parser import get_main_parser

    parser, found = get_main_parser(), commands("dvc")
    for place, command in found:
        if command in ("dvc plots", "dvc exp run -S"):  # how commands are named that someone has typed
            continue
        try:
            named = parser.parse_args(shlex.split(command)[1:])
        except (Exception, SystemExit) as error:
            pytest.fail(f"{place}: `{command}`: {error}")
        for target in getattr(named, "targets", None) or []:
            assert target.startswith(HOLE) or target.partition("@")[0] in stage_names(), f"{place}: {target}"
        if named.cmd == "repro" and named.force:
            assert named.single_item, f"{place}: without --single-item this trains everything anew"
        assert named.cmd != "gc" or named.all_experiments, f"{place}: this removes what experiments need"
    assert len(found) > 50


def test_other_commands_that_a_message_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for place, command in commands("make"):
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), f"{place}: {command}"
    for place, command in commands("python"):
        if command == "python run.py":  # of a Space
            continue
        _, dash, module, *options = shlex.split(command)
        spec = importlib.util.find_spec(module)
        assert dash == "-m" and spec and spec.origin, f"{place}: {command}"
        for option in options:
            known = Path(spec.origin).with_name(
                "__main__.py" if spec.submodule_search_locations else Path(spec.origin).name
            )
            assert not option.startswith("-") or option in known.read_text(), f"{place}: {command}"
    # Of the tools' own options, `--column PART=COLUMN` for example, tests/tools/test_own.py shows that they work.
    others = {
        one.split()[0] for _, text in literals() for one in re.findall(r"`([^`\n]+)`", text) if " -" in one
    }
    assert others <= {*PROGRAMS, "--column"}, others


def test_whoever_reads_a_stages_file_names_a_stage_that_makes_it() -> None:
    """It comes back in "`dvc repro STAGE` makes it"."""
    found = []
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in READERS:
                    made_by = [text for one in node.args[1:] if (text := text_of(one))]
                    found += [(f"{path.relative_to(ROOT)}:{node.lineno}", one) for one in made_by]
    assert len(found) > 15
    for place, made_by in found:
        assert made_by.partition("@")[0] in {*stage_names(), HOLE}, f"{place}: {made_by}"


# What stages/format/trials.py tries, of which a message names the one that helps.
PUT_IN = {"stages/format/limits.py": ("template_args", "chat_template")}


def test_params_has_every_setting_that_a_message_names() -> None:
    messages = [(place, text) for place, text in literals() if " " in text]
    found = [
        (place, one)
        for place, text in messages
        for key in SETTING.findall(text)
        for one in filled(place, key)
    ]
    unknown = [f"{place}: {one}" for place, one in found if not exists(one.split("."), Params)]
    assert not unknown
    assert len(found) > 30


def filled(place: str, key: str) -> list[str]:
    """The settings that a message's key stands for: one each where its last name is put in when it is printed."""
    names = PUT_IN.get(place.partition(":")[0], ())
    return [key.removesuffix("HOLE") + name for name in names] if key.endswith(".HOLE") and names else [key]


def exists(keys: list[str], kind: Any) -> bool:
    """Whether params.yaml may have these keys, one below the other; `HOLE`, `<word>` and `*` are any name."""
    if not keys:
        return True
    if get_origin(kind) in (typing.Union, UnionType, Annotated):
        return any(exists(keys, one) for one in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
        if "train" in fields:  # typed once all its three places are read as one
            fields["train"] = TrainParams
        if kind is Variant:
            fields["lora"] = LoraParams
        return keys[0] in fields and exists(keys[1:], fields[keys[0]])
    return get_origin(kind) is dict and exists(keys[1:], get_args(kind)[1])


# --- what they do ---------------------------------------------------------------------------------------------


def remedies(line: str) -> list[list[str]]:
    """The commands that a message names, as words."""
    return [shlex.split(one) for one in re.findall(r"`([^`]+)`", line) if one.split()[0] in PROGRAMS]


def only(word: str) -> str:
    """The one line of `verify` that has a word."""
    [line] = [line for line in verify(load_params()).faults if word in line]
    return line


def in_order() -> bool:
    return not verify(load_params()).faults


def test_what_is_damaged_comes_back_as_verify_says(study: Workspace) -> None:
    study.run("dvc", "status")  # DVC knows every file by size and time now
    path = study.root / ADAPTER
    damage(path, flip)
    line = only(f"{ADAPTER} is damaged")
    path.unlink()
    assert "delete it, then `dvc checkout" in line
    study.run(*remedies(line)[0])
    assert in_order()

    copy = cached(study, "models/A/README.md")
    damage(copy, truncate)
    line = only("the cache's copy of models/A/README.md")
    copy.unlink()
    assert "delete it if it is there" in line
    study.run(*remedies(line)[0])
    assert in_order()

    (study.root / "plots/report.md").write_text("better")
    study.run(*remedies(only("plots is damaged"))[0])
    assert in_order()


@pytest.mark.faults  # a few seconds, for what is a few seconds of DVC and of plot
def test_what_is_missing_out_of_date_or_invented_is_made_as_verify_says(study: Workspace) -> None:
    shutil.rmtree(study.root / "models/C")
    study.run(*remedies(only("models/C is not there"))[0])
    assert in_order()
    shutil.rmtree(study.root / "metrics/eval/C")
    study.run("dvc", "repro", "eval@C")  # as whoever reads a missing file says; out of the cache
    assert in_order()

    study.set(evaluation__margin=0.5)
    study.run(*remedies(only("plot is out of date"))[0])
    assert in_order()

    summary = study.root / "metrics/summary.json"
    values = json.loads(summary.read_text())
    summary.write_text(json.dumps(values | {"B": values["B"] | {"vs_base": "better by 9"}}))
    study.run("dvc", "commit", "--force", "plot")
    (forced,) = remedies(only("but the conversations say"))
    done = study.run(*forced)
    assert re.findall(r"Running stage '([^']+)'", done.stdout) == ["plot"]
    assert in_order()


@pytest.mark.faults
def test_what_only_a_remote_has_is_pulled_as_messages_say(
    study: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    study.commit("a remote")  # DVC asks the one that a commit's own .dvc/config names
    study.run("dvc", "push")
    copy = cached(study, "models/A/README.md")
    for path in (copy, study.root / "models/A/README.md"):
        damage(path, truncate)
    line = only("models/A/README.md is damaged")
    for path in (copy, study.root / "models/A/README.md"):
        path.unlink()
    assert "delete both, then" in line
    study.run(*remedies(line)[0])
    assert in_order()

    (study.root / "models/A/README.md").write_text("another")
    study.run("dvc", "commit", "--force", "train@A")
    study.commit("another A")
    study.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    with pytest.raises(UserError, match="in neither DVC's cache nor the remote") as error:
        fetch_revision("HEAD")
    study.run(*remedies(str(error.value))[0])
    assert (fetch_revision("HEAD") / "models/A/README.md").read_text() == "another"


def test_the_notes_of_verify_go_away_as_they_say(study: Workspace) -> None:
    path = study.root / "dvc.yaml"
    whole = path.read_text()
    path.write_text(whole.replace("  C:\n    path: models/C\n", "  Z:\n    path: models/C\n"))
    shutil.copytree(study.root / "models/C", study.root / "models/D")
    study.git("tag", "D@v1.0.0")
    notes = verify(load_params()).notes
    lacks, names, tag, left = (one for one in notes)
    entry = re.findall(r"`([^`]+)`", lacks)[1]
    path.write_text(re.sub(r"(?m)^  Z:\n(    .*\n)+", f"  {entry}\n", path.read_text()))
    assert "remove the entry" in names
    study.run(*remedies(tag)[0])
    assert remedies(left) == [["make", "prune"]]
    study.tool("prune", "--yes")
    assert verify(load_params()).notes == []
