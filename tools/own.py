"""Add a data file of your own as a source and a variant: `make own FILE=path`, or `python -m tools.own path`.

Shows what training would make of its rows before anything is written, then copies the file into data/own/ and adds the
keys to params.yaml in place. The new variant is the one that `evaluation.test_of` names with these rows in addition, and
takes its place there, so that every model is scored on held-out rows of every source.
"""

from __future__ import annotations

import copy
import io
import json
import re
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import typer
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import write_text
from abctune.core.params import (
    KEY,
    PARAMS_FILE,
    LocalSource,
    Params,
    Part,
    SourceParams,
    ToolCallCheck,
    load_params,
)
from abctune.core.params.section import BASE, SOURCE_KEYS, VARIANT_KEYS
from abctune.core.plural import counted
from abctune.core.provenance import sha256_of
from abctune.llm.tokenizer import load_tokenizer
from stages.fetch.data_files import data_files
from stages.fetch.records import DataFile, read_files
from stages.format.limits import remedy, unread_fields, unwanted
from stages.format.preview import lines
from stages.split.buckets import SUBSETS
from stages.split.check import FEW_GROUPS
from tools.examine import Examination, Record, examine
from tools.tidy_params import as_dvc_writes

OWN = Path("data/own")
MOST_NAMED = 30  # columns in a message
NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")


class New(NamedTuple):
    """What is added to params.yaml."""

    source: str
    variant: str
    target: Path  # where the file will lie, below data/own/
    options: dict[str, Any]  # the entry under `sources`
    rows: int
    group_by: str | None
    check: dict[str, Any] | None  # the entry under `evaluation.checks`
    split: str | None  # of a folder that holds several


@exits_with_one_line
def main(
    file: Annotated[Path, typer.Argument(help="a data file, or a folder of them")],
    name: Annotated[str | None, typer.Option(help="the source's name; default: the file's")] = None,
    variant: Annotated[str, typer.Option(help="the new variant's name")] = "D",
    column: Annotated[list[str], typer.Option(help="PART=COLUMN, as user=question; several times")] = [],  # noqa: B006
    ignore: Annotated[list[str], typer.Option(help="a column to leave out; several times")] = [],  # noqa: B006
    group_by: Annotated[
        str | None, typer.Option(help="a column; rows with the same value stay together in the split")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="which split of a folder that holds several; default: train")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="have a program judge the models' answers (labels, tool calls)")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what becomes of the rows; add nothing")
    ] = False,
) -> None:
    """Show what becomes of a file's rows, and add it to params.yaml."""
    params, target = load_params(), OWN / file.name
    if not file.exists():
        raise UserError(f"{file} not found; name a data file or a folder of them")
    if target.exists() and not is_same(file, target):
        raise UserError(f"{target} exists with other contents; rename {file}, or remove that one")
    if known := source_of(params, target):
        print(f"{target} is source {known!r} of {PARAMS_FILE} already; nothing was changed")
        return
    source = name or NOT_IN_A_NAME.sub("_", file.name.split(".")[0])
    check_names(params, source, variant)
    options = options_of(column, ignore)
    columns: Counter[str] = Counter()
    files, split, notes, left_out = data_files([file.as_posix()], "FILE", split)
    for line in left_out:
        print(line)
    for note in notes:
        print(f"{note}. Another one: `--split NAME` (make: ARGS='--split NAME')")
    found = examine(
        records_of(files, columns, group_by),
        SourceParams(**options),
        load_tokenizer(**params.active.model.template),
        params.active.data.max_length,
        source,
        group_by,
    )
    print(description(found, columns, source, params), flush=True)
    check_columns(options, columns)
    check_usable(found, source, file, params)
    fitting = fitting_check(found)
    for line in advice(found, group_by, fitting, check):
        print(line, flush=True)
    if not dry_run:
        rows = found.record.sources[source].read
        new = New(source, variant, target, options, rows, group_by, fitting if check else None, split)
        print(add(new, file, params))


def source_of(params: Params, target: Path) -> str | None:
    """The source of the active profile that is this file; None if none is."""
    origins = params.active.sources.items()
    return next(
        (
            name
            for name, origin in origins
            if isinstance(origin, LocalSource) and target.as_posix() in origin.paths
        ),
        None,
    )


def check_names(params: Params, source: str, variant: str) -> None:
    """Refuse names that params.yaml has, or cannot have.

    Raises:
        UserError: with the option that gives another name.
    """
    for kind, option, name, names, taken in (
        ("source", "--name", source, params.sources, SOURCE_KEYS),
        ("variant", "--variant", variant, params.variants, (BASE, *VARIANT_KEYS)),
    ):
        by = f"`{option} NAME` (with make: ARGS='{option} NAME')"
        if not KEY.fullmatch(name):
            raise UserError(f"{name!r} is no name; give one of letters, digits, '_' and '-' by {by}")
        if name in taken:
            raise UserError(
                f"{name!r} has a meaning of its own, so that no {kind} has it; give another name by {by}"
            )
        if name in names:
            raise UserError(f"{PARAMS_FILE} has a {kind} {name!r} already; give another name by {by}")


def options_of(columns: Sequence[str], ignore: Sequence[str]) -> dict[str, Any]:
    """The source's entry under `sources`.

    Raises:
        UserError: a column is given otherwise than as PART=COLUMN, there is no such part, or it is given twice.
    """
    pairs = [one.partition("=") for one in columns]
    for part, times in Counter(part for part, _, _ in pairs).items():
        if times > 1:
            raise UserError(
                f"--column {' '.join(columns)}: {part!r} is given {times} times; name one column for it"
            )
    mapped: dict[str, Any] = {"columns": {part: column for part, _, column in pairs}} if pairs else {}
    # A list last would be in the way: DVC drops a comment that follows one, and the next section's heading would.
    options: dict[str, Any] = {**mapped, **({"ignore": list(ignore)} if ignore else {}), "schema": "auto"}
    try:
        SourceParams(**options)
    except ValidationError:
        parts = ", ".join(get_args(Part))
        raise UserError(f"--column {' '.join(columns)}: write PART=COLUMN with PART one of {parts}") from None
    return options


def records_of(files: list[DataFile], columns: Counter[str], group_by: str | None) -> Iterator[Record]:
    """The files' rows as `examine` takes them; their columns are counted."""
    for record in read_files(files, group_by):
        try:
            value = json.loads(record.text)
        except ValueError:
            value = None
        if isinstance(value, dict):
            columns.update(value.keys())
        yield record.text, record.group, record.problem


def description(found: Examination, columns: Counter[str], source: str, params: Params) -> str:
    """Columns, roles, lengths, what was mended and refused, and rows with the supervised text marked."""
    if source not in found.record.sources:
        raise UserError("the file holds no rows; name one that does")
    counts, lengths = found.record.sources[source], found.record.lengths
    at = lengths.quantiles
    told = [
        f"{counted(counts.read, 'row')}, {found.usable:.1%} usable; {counted(counts.duplicate, 'duplicate')}",
        "columns: " + ", ".join(f"{name} ({n:,})" for name, n in columns.most_common()),
    ]
    if found.roles:
        told += [
            "turns: " + ", ".join(f"{role} ({n:,})" for role, n in found.roles.items()),
            f"tokens: median {at['0.5']:,}, longest {at['1.0']:,}; {counted(counts.truncated, 'row')} cut to"
            f" profiles.{params.profile}.data.max_length ({lengths.max_length:,})",
        ]
    told += [line.removeprefix(f"{source}: ") for line in lines(source, counts)]
    if found.roles:
        _, _, shown = found.preview.partition("=== ")
        told += [
            "",
            "«Supervised text» stands between guillemets; all else is context.",
            f"=== {shown.rstrip()}\n",
        ]
    return "\n".join(told)


def check_columns(options: dict[str, Any], columns: Counter[str]) -> None:
    """Refuse a column that no row has.

    Raises:
        UserError: with the columns that rows have.
    """
    for part, column in options.get("columns", {}).items():
        if column not in columns:
            there = ", ".join(map(repr, list(columns)[:MOST_NAMED]))
            raise UserError(
                f"--column {part}={column}: no row has a column {column!r}; nothing was changed. Name one of {there}"
            )


def check_usable(found: Examination, source: str, file: Path, params: Params) -> None:
    """Refuse a file of which the stage `format` would refuse too many rows.

    Raises:
        UserError: with the remedy for the most frequent reason.
    """
    counts, limit, by_option = found.record.sources[source], params.format.max_quarantined, True
    if unwanted(counts) <= limit * counts.read:
        return
    if fields := unread_fields(counts):
        options = " ".join(f"--ignore {shlex.quote(field)}" for field in fields)
        helps = f"say what may be left out (`{options}`), or what belongs to the conversation (`--column PART=COLUMN`)"
    elif re.match(r"(say under|check) sources", helps := remedy(source, counts, params, found.formatter)):
        helps = "say which columns are the user's and the assistant's: `--column user=COLUMN --column assistant=COLUMN`"
    else:
        by_option = False
    options_note = " (options of make: ARGS='...')" if by_option else ""
    raise UserError(
        f"{unwanted(counts):,} of {counted(counts.read, 'row')} of {file} cannot be used, more than format.max_quarantined"
        f" ({limit:g}) in {PARAMS_FILE} allows; nothing was changed. To use them, {helps}{options_note}"
    )


def fitting_check(found: Examination) -> dict[str, Any] | None:
    """The check on answers that fits the rows' replies (evaluation.checks); None where none is known to."""
    asked = {"rows": ToolCallCheck.model_fields["rows"].default}  # written out, to be changed
    rows = sum(one.kept for one in found.record.sources.values())
    if 2 * found.calls > rows:
        return {"kind": "tool_call", **asked}
    # Labels come again and again: a file in which every second reply is new has answers.
    if len(found.replies) > 1 and 2 * len(found.replies) <= rows:
        return {"kind": "choice", "labels": sorted(found.replies), **asked}
    return None


def advice(
    found: Examination, group_by: str | None, fitting: dict[str, Any] | None, check: bool
) -> Iterator[str]:
    """What a person should know before training.

    Raises:
        UserError: the rows cannot be split, or a check is wanted and none fits.
    """
    rows = sum(one.kept for one in found.record.sources.values())
    if rows < len(SUBSETS):
        raise UserError(
            f"{counted(rows, 'row')} cannot be trained on and tested on; nothing was changed. Add rows to the file"
        )
    if found.groups < min(rows, FEW_GROUPS):
        same = f"the same value of {group_by}" if group_by else "the same first message"
        groups = f"the {rows:,} rows are {counted(found.groups, 'group')}: rows with {same} stay together"
        helps = (
            "name a column that tells rows apart by `--group-by COLUMN` (with make: ARGS='--group-by COLUMN')"
        )
        if found.groups < len(SUBSETS):
            raise UserError(
                f"{groups} in the split, so some would not be tested on; nothing was changed. To use them, {helps}"
            )
        yield f"Warning: {groups} in the split, of which there may be none to test on; {helps}."
    elif rows < FEW_GROUPS:
        yield f"Warning: of {rows} rows there may be none to test on; add rows to the file."
    if check and not fitting:
        raise UserError(
            "--check: the replies are neither tool calls nor a few labels; nothing was changed. Add the file without it, and"
            f" a check under evaluation.checks in {PARAMS_FILE} (docs/evaluation.md)"
        )
    if fitting and not check:
        what = "tool calls" if fitting["kind"] == "tool_call" else f"{len(fitting['labels'])} labels"
        yield (
            f"The replies are {what}: with `--check` (make: ARGS='... --check') a program judges every model's answers"
            " to the test rows, too, which says more than loss (docs/evaluation.md)."
        )


def add(new: New, file: Path, params: Params) -> str:
    """Copy the file below data/own/ and write params.yaml; return what was done, for people."""
    text = as_dvc_writes(with_source(PARAMS_FILE.read_text(encoding="utf-8"), new, params))
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / PARAMS_FILE
        write_text(tried, text)
        after = load_params(tried)
    if not new.target.exists():
        OWN.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            shutil.copytree(file, new.target)
        else:
            shutil.copyfile(file, new.target)
    write_text(PARAMS_FILE, text)
    checked = f" Answers are checked ({new.check['kind']})." if new.check else ""
    data, tracked = (shlex.quote(f"{new.target}{suffix}") for suffix in ("", ".dvc"))
    mix = ", ".join(f"{name} {rows:,}" for name, rows in after.variants[new.variant].mix.items())
    return (
        f"Added to {PARAMS_FILE}: source {new.source!r} ({new.target}) and variant {new.variant!r}: the recipe of"
        f" {params.evaluation.test_of!r} on {mix} rows (times rows_scale, {params.active.data.rows_scale:g} in profile"
        f" {params.profile}). All models are scored on the test rows of {new.variant}, which hold every source"
        f" (evaluation.test_of).{checked}{seen(after, new.variant)} Next: `dvc add {data}` and `git add {tracked}`,"
        f" without which `dvc exp run --temp` and `--queue` do not find it; then `dvc repro`. To undo it: `git checkout {PARAMS_FILE}`."
    )


def seen(params: Params, variant: str) -> str:
    """How much of a variant's rows its training comes to see, where its steps end before the rows do; else nothing."""
    recipe, scale = params.train_of(variant), params.active.data.rows_scale
    if recipe.max_steps is None:
        return ""
    conversations = recipe.steps * recipe.conversations_per_step
    rows = sum(round(rows * scale) for rows in params.variants[variant].mix.values())
    if conversations >= rows:
        return ""
    return (
        f" Its {recipe.steps:,} steps see {conversations:,} of about {rows:,} rows; to see more, raise"
        f" {recipe.key('max_steps')}."
    )


def with_source(text: str, new: New, params: Params) -> str:
    """params.yaml with the source in every profile and the variant, comments kept."""
    yaml = YAML()
    yaml.preserve_quotes = True  # type: ignore[assignment]
    yaml.width = 4096  # type: ignore[assignment]
    document = yaml.load(text)
    insert(document["sources"], new.source, new.options)
    origin = {"origin": "local", "path": new.target.as_posix(), "license": "own data"}
    for key in ("split", "group_by"):
        if value := getattr(new, key):
            origin[key] = value
    for profile in document["profiles"].values():
        insert(profile["sources"], new.source, origin)
    like = document["variants"][params.evaluation.test_of]
    asked = max(new.rows, -int(-new.rows // params.active.data.rows_scale))  # all rows in either profile
    recipe = {part: plain(like[part]) for part in ("lora", "replicates", "train") if part in like}
    insert(document["variants"], new.variant, {"mix": {**plain(like["mix"]), new.source: asked}, **recipe})
    document["evaluation"]["test_of"] = new.variant
    if new.check:
        checks = plain(document["evaluation"].get("checks", {}))
        insert(document["evaluation"], "checks", {**checks, new.source: new.check})
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def plain(value: Any) -> Any:
    """A part of a YAML document without its comments."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def insert(mapping: CommentedMap, key: str, value: dict[str, Any]) -> None:
    """Add an entry at a mapping's end, before the comment that follows the mapping and heads the next section.

    ruamel keeps that comment with the mapping's last leaf, wherever that is.
    """
    holder, last = last_leaf(mapping)
    mapping[key] = commented(value)
    tokens = holder.ca.items.get(last)
    place = 2 if isinstance(holder, CommentedMap) else 0
    if tokens and tokens[place] and "\n" in tokens[place].value:
        own, _, following = tokens[place].value.partition("\n")
        new_holder, new_last = last_leaf(mapping)
        if new_holder is holder and new_last == last:
            return  # the entry was there, in another place than the end
        moved = copy.copy(tokens[place])
        moved.value = f"\n{following}"
        new_holder.ca.items[new_last] = (
            [None, None, moved, None] if isinstance(new_holder, CommentedMap) else [moved, None]
        )
        tokens[place].value = f"{own}\n"
        if not own.strip():
            del holder.ca.items[last]


def commented(value: Any) -> Any:
    """A value as ruamel's types, which can hold comments."""
    if isinstance(value, dict):
        return CommentedMap({key: commented(inner) for key, inner in value.items()})
    return CommentedSeq([commented(inner) for inner in value]) if isinstance(value, list) else value


def last_leaf(node: Any) -> tuple[Any, Any]:
    """The innermost mapping or list at a node's end, and its last key or index."""
    last = next(reversed(node)) if isinstance(node, CommentedMap) else len(node) - 1
    inner = node[last]
    return last_leaf(inner) if isinstance(inner, CommentedMap | CommentedSeq) and len(inner) else (node, last)


def is_same(file: Path, target: Path) -> bool:
    """Whether a file, or a folder's files, are those that lie at the target."""
    if file.resolve() == target.resolve():
        return True
    if file.is_dir() != target.is_dir():
        return False
    if file.is_file():
        return sha256_of(file) == sha256_of(target)
    there, here = (
        {p.relative_to(top): sha256_of(p) for p in top.rglob("*") if p.is_file()} for top in (file, target)
    )
    return there == here


if __name__ == "__main__":
    typer.run(main)
