"""Checkpoint ownership, validation and locking.

    checkpoints/<variant>/lock                    held by the run that is training
    checkpoints/<variant>/<replicate>/<key>/key.json     what the key was made of
    checkpoints/<variant>/<replicate>/<key>/step-40/     the Trainer's files; `run/` holds ours; manifest.json came last
    checkpoints/<variant>/<replicate>/<key>/finished/    a trained replicate: adapter, metrics, training.json, manifest

The folder is not an output of the stage, since DVC deletes those before a stage runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abctune.core.errors import UserError, disk_full, is_disk_full
from abctune.core.files import atomic_output, remove, sync, write_json, write_text
from abctune.core.params import Params
from abctune.core.places import BASE_MODEL, SPLIT
from abctune.core.provenance import hash_of, sha256_of, versions
from stages.train.recipe import Replicate, Run

ROOT = Path("checkpoints")
MANIFEST = "manifest.json"
FINISHED = "finished"
NEWEST = 2  # how many stay: should the newest turn out to be damaged, the one before it is used
MIB = 2**20


@contextmanager
def only_run(variant: str) -> Iterator[None]:
    """Hold the variant's lock; the system releases it however the process ends.

    Raises:
        UserError: another process is training the variant here.
    """
    path = ROOT / variant / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{variant} is being trained here by process {file.read().strip() or 'unknown'}, which holds {path}; "
                "let it finish or stop it, then run again"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def identity(run: Run, params: Params, replicate: Replicate) -> dict[str, dict[str, Any]]:
    """Everything a checkpoint depends on; if any value changed, resuming from it would be a different run.

    Call it with all modules imported: the code is stages/train and what it has loaded of abctune/.
    """
    from abctune.llm.device import resolve_dtype

    variant, dtype = run.variant, str(resolve_dtype(run.recipe.dtype))
    recipe = run.recipe.model_dump(mode="json", exclude={"save_steps", "dtype", "publish"})
    lora = {f"lora.{name}": value for name, value in run.lora.model_dump(mode="json").items()}
    ours = (module for name, module in sys.modules.items() if name.startswith("abctune."))
    loaded = (getattr(module, "__file__", None) for module in ours)
    code = {Path(file) for file in loaded if file} | set(Path(__file__).parent.glob("*.py"))
    return {
        "params": {
            **recipe,
            **lora,
            "dtype": dtype,
            "seed": replicate.seed,
            "max_length": run.max_length,
            "batch_tokens": run.eval_batch_tokens,
            **params.active.model.template,
        },
        "data": {file: sha256_of(SPLIT / variant / file) for file in ("train.parquet", "val.parquet")},
        # Its weights were checked by hash when they were fetched.
        "base model": {
            "source.json": sha256_of(BASE_MODEL / "source.json"),
            **{file.name: file.stat().st_size for file in sorted(BASE_MODEL.rglob("*")) if file.is_file()},
        },
        "code": {f"{file.parent.name}/{file.name}": sha256_of(file) for file in sorted(code)},
        "libraries": versions(),
    }


class CheckpointStore:
    """The checkpoints of one replicate of a variant, trained with one identity."""

    def __init__(self, variant: str, made_of: dict[str, dict[str, Any]], replicate: int = 1) -> None:
        self.variant = variant
        self.made_of = made_of
        self._replicates = ROOT / variant / str(replicate)
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = self._replicates / key
        self.writing = self.folder / "writing"  # the Trainer's output_dir: a checkpoint that is not finished
        self.kept = self.folder / "kept"  # the adapter that KeepBest has kept so far
        self.last_finite = ROOT / variant / "last_finite"  # an adapter to look into (TerminateOnNonFinite)

    def open(self) -> Path | None:
        """The newest valid checkpoint or None; warn of each that is not used, and remove unfinished ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for why in self._incompatible():
            _warn(f"{self.variant}: {why}")
        start = self._newest_valid()
        good = [path for path in self.steps() if start and _step(path) <= _step(start)]
        for path in self.folder.iterdir():
            if path not in good:
                remove(path)
        write_json(self.folder / "key.json", self.made_of)
        return start

    def steps(self) -> list[Path]:
        """The finished checkpoints' folders, the newest first."""
        return sorted(self.folder.glob("step-*"), key=_step, reverse=True)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step}"

    def prune(self) -> None:
        """Remove all checkpoints but the newest ones."""
        for old in self.steps()[NEWEST:]:
            shutil.rmtree(old)

    def finish(self, metrics: Path, write_record: Callable[[Path], None]) -> Path:
        """Put the kept adapter, the metrics and the record of a trained replicate in place, as a whole."""
        with atomic_output(self.folder / FINISHED) as folder:
            shutil.copytree(self.kept, folder / "adapter")
            shutil.copytree(metrics, folder / "metrics")
            write_record(folder)
            seal(folder)
        for path in self.steps():
            remove(path)
        return self.folder / FINISHED

    def finished(self) -> Path | None:
        """The folder that `finish` has made, if it is there and every byte is as written."""
        folder = self.folder / FINISHED
        if not folder.exists():
            return None
        if flaw := find_flaw(folder):
            _warn(f"{self.variant}: {folder} is damaged ({flaw}); this replicate is trained again")
            return None
        return folder

    def restore_metrics(self, metrics: Path) -> None:
        """Copy a finished replicate's metrics back: DVC has deleted the stage's outputs before the stage began."""
        shutil.rmtree(metrics, ignore_errors=True)
        shutil.copytree(self.folder / FINISHED / "metrics", metrics)

    def _newest_valid(self) -> Path | None:
        for folder in self.steps():
            flaw = find_flaw(folder)
            if flaw is None:
                return folder
            _warn(f"{self.variant}: checkpoint {folder} is damaged ({flaw}) and removed")
        return None

    def _incompatible(self) -> Iterator[str]:
        """Why each checkpoint of another identity is not used."""
        for folder in sorted(self._replicates.iterdir()):
            if folder == self.folder or not any(folder.glob("step-*")):
                continue
            try:
                theirs = json.loads((folder / "key.json").read_text(encoding="utf-8"))
                why = f"other {'; '.join(differences(theirs, self.made_of))}"
            except (OSError, ValueError, AttributeError):
                why = "key.json cannot be read"
            yield f"checkpoints in {folder} are not used, training starts from its first step: {why}"


def clear(variant: str) -> None:
    """Remove every checkpoint of the variant: its adapters are published."""
    for path in (ROOT / variant).iterdir():
        if path.name != "lock":
            remove(path)


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    """`params (max_steps)`, `code (train/trainer.py)`: per kind, what is not the same."""
    for kind, values in ours.items():
        old = theirs.get(kind, {})
        names = sorted(name for name in values.keys() | old.keys() if values.get(name) != old.get(name))
        if names:
            yield f"{kind} ({', '.join(names)})"


def seal(folder: Path) -> None:
    """Write the manifest: size and SHA-256 of every file, after all of them have been flushed to disk."""
    sync(folder)
    write_text(folder / MANIFEST, _as_text(_contents(folder)))


def find_flaw(folder: Path) -> str | None:
    """What is wrong with a sealed folder, naming the file; None if every byte is as written."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        expected = json.loads(text)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except ValueError:
        return f"{MANIFEST} cannot be read"
    found = _contents(folder)
    if not isinstance(expected, dict) or text != _as_text(expected):
        return f"{MANIFEST} cannot be read"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if found[name] != expected[name]:
            return f"{name} has other bytes than were written"
    return None


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(folder).as_posix(): hash_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }


def _as_text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


@contextmanager
def explaining_errors(path: Path) -> Iterator[None]:
    """End the progress bar's line before an error's; say a full disk in the usual words.

    torch and safetensors report that as errors of their own, without a reason; `path` is on the disk in question.
    """
    try:
        yield
    except Exception as error:
        print(file=sys.stderr)
        if not isinstance(error, UserError) and (is_disk_full(error) or shutil.disk_usage(path).free < MIB):
            raise disk_full(path) from error
        raise


def _step(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)
