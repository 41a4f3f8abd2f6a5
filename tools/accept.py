"""Accept an edit of code that changes no result, without running everything again: `python -m tools.accept`.

An edited comment in abctune/core makes every stage out of date, trainings included. This finds the stages that are out
of date because of code alone, and accepts them with `dvc commit` once it knows that their results follow from the new
code:

- where every edited file has the syntax tree that it had before (comments, docstrings and layout aside), nothing else
  is to be shown;
- otherwise it runs one item of each such stage (`mix@A` for all of `mix`) in a folder of its own and compares the
  outputs with those of dvc.lock. A sample is no proof: name further stages, or run `dvc repro`, if in doubt.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from abctune.core.errors import UserError, exits_with_one_line
from tools.dotted import flat

CODE = ("stages/", "abctune/")
# Parts of JSON keys whose values describe the run, not its result.
OF_THE_RUN = (
    "seconds",
    "resources",
    "hardware",
    "versions",
    "abctune",
    "gib",
    "per_second",
    "created",
    "resumed_at",
    "at_once",
)
COMMITS = 200  # how far back the code that made the results is looked for


@dataclass(frozen=True)
class Stale:
    """A stage that is out of date because of code alone."""

    name: str
    command: str
    deps: tuple[Path, ...]
    outs: tuple[Path, ...]
    edited: dict[str, str]  # folder of code -> its hash in dvc.lock


@exits_with_one_line
def main(
    stages: Annotated[
        list[str] | None, typer.Argument(help="stages to run as the sample, such as eval@B")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="say what would be accepted, accept nothing")
    ] = False,
) -> None:
    """Check that out-of-date stages need not run again, and tell DVC so."""
    stale = stale_stages()
    if not stale:
        print("no stage is out of date")
        return
    edited = {folder: oid for stage in stale for folder, oid in stage.edited.items()}
    if not stages and all(same_syntax(Path(folder), oid) for folder, oid in edited.items()):
        print(f"same syntax tree as before: {', '.join(sorted(edited))}")
    else:
        for stage in sample(stale, stages or []):
            rerun(stage)
            print(f"{stage.name}: the new code makes the same outputs")
    if not check:
        # For each name that it is given DVC reads the stage's files again, so it is given none and takes all stages. What
        # went out of date since the check above would be taken along unseen.
        if stale_stages() != stale:
            raise UserError("files changed while this ran; run `python -m tools.accept` again")
        subprocess.run([sys.executable, "-m", "dvc", "commit", "--force", "--quiet"], check=True)
        print(f"accepted: {', '.join(stage.name for stage in stale)}")


def stale_stages() -> list[Stale]:
    """The stages that are out of date.

    Raises:
        UserError: one of them is so for another reason than code, or DVC cannot tell.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            found = []
            for name, changes in repo.status().items():
                require_code_alone(name, changes)
                stage = repo.stage.collect(name)[0]
                deps = {relative(dep.fs_path): dep for dep in stage.deps if not hasattr(dep, "params")}
                edited = {
                    str(path): dep.hash_info.value for path, dep in deps.items() if dep.changed_checksum()
                }
                outs = tuple(relative(out.fs_path) for out in stage.outs)
                found.append(Stale(name, stage.cmd, tuple(deps), outs, edited))
            return found
    except (DvcException, LockError) as error:
        raise UserError(
            f"DVC: {error}; run this from the repository's root, while no other dvc runs"
        ) from None


def require_code_alone(name: str, changes: list[Any]) -> None:
    """Refuse a stage whose params, data or outputs changed: it has to run."""
    for change in changes:
        deps = change.get("changed deps", {}) if isinstance(change, dict) else {}
        others = [path for path in deps if not path.startswith(CODE)]
        if not deps or others or len(change) > 1:
            cause = ", ".join(others) or (change if isinstance(change, str) else ", ".join(change))
            raise UserError(f"{name} is out of date because of more than code ({cause}); `dvc repro` runs it")


def relative(path: str) -> Path:
    """A path relative to the working directory."""
    return Path(os.path.relpath(path))


# --- the proof: the same syntax tree ------------------------------------------------------------------------


def same_syntax(folder: Path, oid: str) -> bool:
    """Whether a folder's files mean what they meant when DVC recorded the hash `oid` of it.

    The earlier files are looked for in Git's history; False where no commit has them.
    """
    before = files_of_hash(folder, oid)
    now = {path.relative_to(folder).as_posix(): path.read_bytes() for path in code_files(folder)}
    return (
        before is not None
        and before.keys() == now.keys()
        and all(meaning(name, before[name]) == meaning(name, now[name]) for name in now)
    )


def code_files(folder: Path) -> Iterator[Path]:
    """The files that DVC hashes in a folder of code."""
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def meaning(name: str, content: bytes) -> object:
    """A Python file's syntax tree without docstrings; any other file's bytes."""
    if not name.endswith(".py"):
        return content
    return ast.dump(without_docstrings(ast.parse(content)))


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree with every docstring emptied."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value.value = ""
    return tree


def files_of_hash(folder: Path, oid: str) -> dict[str, bytes] | None:
    """The folder's files in the newest commit in which DVC would give the folder this hash."""
    log = ["log", f"--max-count={COMMITS}", "--format=%H", "--", str(folder)]
    for commit in git(*log).decode().split():
        listed = git("ls-tree", "-r", "-z", "--name-only", commit, "--", str(folder)).decode().split("\0")
        files = {
            Path(name).relative_to(folder).as_posix(): git("show", f"{commit}:{name}")
            for name in listed
            if name
        }
        if dvc_hash(files) == oid:
            return files
    return None


def git(*arguments: str) -> bytes:
    """What a git command prints."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True).stdout


def dvc_hash(files: dict[str, bytes]) -> str:
    """The hash that DVC gives to a folder with these files."""
    entries = [
        {"md5": hashlib.md5(files[name], usedforsecurity=False).hexdigest(), "relpath": name}
        for name in sorted(files)
    ]
    return (
        hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    )


# --- the sample: one item of each stage, run in a folder of its own -------------------------------------------


def sample(stale: list[Stale], wanted: list[str]) -> list[Stale]:
    """The stages that are run: those named, and of every other kind the item with the smallest outputs.

    Raises:
        UserError: one that is named is not out of date.
    """
    by_name = {stage.name: stage for stage in stale}
    if unknown := [name for name in wanted if name not in by_name]:
        raise UserError(f"{unknown[0]} is not out of date; out of date: {', '.join(by_name)}")
    chosen = [by_name[name] for name in wanted]
    kinds = {stage.name.partition("@")[0] for stage in chosen}
    for stage in sorted(stale, key=lambda stage: sum(size_of(out) for out in stage.outs)):
        kind = stage.name.partition("@")[0]
        if kind not in kinds:
            kinds.add(kind)
            chosen.append(stage)
    return sorted(chosen, key=lambda stage: list(by_name).index(stage.name))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def rerun(stage: Stale) -> None:
    """Run a stage's command on its inputs in a temporary folder, and compare its outputs with the workspace's.

    Raises:
        UserError: the command fails, or an output differs.
    """
    with tempfile.TemporaryDirectory(prefix="abctune-accept-") as name:
        folder = Path(name)
        for path in (Path("params.yaml"), Path("abctune"), Path("stages"), *stage.deps):
            if not (folder / path).exists():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).symlink_to(path.resolve())
        env = os.environ | {"DVC_STAGE": stage.name, "PYTHONPATH": str(folder)}
        done = subprocess.run(stage.command, shell=True, cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{stage.name} fails with the new code: {(done.stderr.splitlines() or [''])[-1]}")
        for out in stage.outs:
            if differing := next(differences(out, folder / out), None):
                raise UserError(
                    f"{stage.name}: the new code makes another {differing}; `dvc repro` runs what depends on it"
                )


def differences(old: Path, new: Path) -> Iterator[str]:
    """What is not the same in two outputs, a file each; times, memory and other facts of the run are not compared."""
    names = {
        path.relative_to(root) for root in (old, new) for path in [root, *root.rglob("*")] if path.is_file()
    }
    for name in sorted(names):
        if (cause := difference(old / name, new / name)) is not None:
            yield f"{old / name}{cause and f' ({cause})'}"


def difference(old: Path, new: Path) -> str | None:
    """In what two files differ: the first key of a JSON file, else the empty string; None where they say the same."""
    if not (old.exists() and new.exists()):
        return "there in one run alone"
    if old.suffix == ".json":
        before, now = result_of(old), result_of(new)
        none: Any = object()  # of a key that is not there, which is not the same as null
        return next((key for key in before | now if before.get(key, none) != now.get(key, none)), None)
    same = any(word in old.stem for word in OF_THE_RUN) or old.read_bytes() == new.read_bytes()
    return None if same else ""


def result_of(path: Path) -> dict[str, Any]:
    """The JSON's values by dotted key (list items by position), without those that describe the run."""
    values = flat(with_positions(json.loads(path.read_text(encoding="utf-8"))))
    return {key: value for key, value in values.items() if not any(word in key for word in OF_THE_RUN)}


def with_positions(value: Any) -> Any:
    """The value with every list as a mapping from position to item, so that keys inside of it have a name too."""
    if isinstance(value, dict):
        return {key: with_positions(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return {str(position): with_positions(inner) for position, inner in enumerate(value)}
    return value


if __name__ == "__main__":
    typer.run(main)
