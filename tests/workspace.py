"""A whole project in a folder of its own: this repository's code and dvc.yaml, on a very small model and small data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from tests import small, warm

ROOT = Path(__file__).parent.parent
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # to huggingface_hub either means the same
PROJECT_FILES = (
    "abctune",
    "stages",
    "tools",
    "dvc.yaml",
    "params.yaml",
    ".dvc",
    ".dvcignore",
    "data/own",
    "data/votes",
    "models/own",
    ".gitignore",
    ".gitattributes",
    *(
        path.relative_to(ROOT).as_posix()
        for room in ("data", "models", "metrics")
        for path in (ROOT / room / ".gitignore", *sorted((ROOT / room).glob("*/.gitignore")))
    ),
)
# What a test sets in profile tiny, so that it runs in seconds.
SMALL = {
    "model": {"origin": "local", "path": "models/own/small", "license": "none"},
    "sources": {
        "chat": {"origin": "local", "path": "data/own/chat.jsonl"},
        "instruct": {"origin": "local", "path": "data/own/instruct.jsonl"},
    },
    "general": {"origin": "local", "path": "data/own/general.jsonl"},
    "data": {"max_length": 96, "rows_scale": 1.0},
    "split": {"val": 0.1, "test": 0.2},
    "replicates": 1,
}


class Workspace:
    """A project folder and the ways to change its params and run its commands.

    Its figures stay empty, which saves most of plot's time, unless `draws` is set or plot runs in an interpreter of its own.
    """

    def __init__(self, root: Path, draws: bool = False) -> None:
        self.root = root
        self.draws = draws

    def params(self) -> dict:
        return YAML(typ="safe", pure=True).load((self.root / "params.yaml").read_text())

    def set(self, **values: object) -> None:
        """Set params by their path, dots written as double underscores: set(variants__B__train__max_steps=3)."""
        params = self.params()
        for path, value in values.items():
            *parents, key = path.split("__")
            place = params
            for parent in parents:
                place = place[parent]
            place[key] = value
        with (self.root / "params.yaml").open("w") as file:
            YAML().dump(params, file)

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command here with this interpreter first on the PATH; `python -m stages.x` uses the copied code."""
        environment = warm.with_program(self.environment()) | environment
        if found := warm.find(command, self.environment(), environment):
            done = subprocess.CompletedProcess(command, *warm.run(found, self.root))
        else:
            env = self.environment(**environment)
            done = subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of commands that run here."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # The tests' own process has these from importing a stage and Unsloth; fetch takes them as the user's wish.
        inherited = {name: value for name, value in os.environ.items() if name not in OFFLINE}
        figures = {} if self.draws else {"ABCTUNE_TESTS_UNDRAWN": "1"}
        return inherited | {"PATH": path, "NO_COLOR": "1", "COLUMNS": "200"} | figures | more

    def stage(
        self, name: str, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-m", f"stages.{name}", *arguments, check=check, **environment)

    def tool(
        self, name: str, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-m", f"tools.{name}", *arguments, check=check, **environment)

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")
        return self.run("git", *identity, *arguments).stdout


def make_workspace(folder: Path, small_model: Path) -> Workspace:
    """A project that runs in seconds, as a Git repository with one commit."""
    project = new_project(folder, small_model)
    small.write_jsonl(folder / "data/own/chat.jsonl", small.chat_records(120))
    small.write_jsonl(folder / "data/own/instruct.jsonl", small.instruct_records(120))
    small.write_jsonl(folder / "data/own/general.jsonl", small.general_records(12))
    values: dict[str, object] = {f"profiles__tiny__{key}": value for key, value in SMALL.items()}
    for variant, mix in {"A": {"chat": 120}, "B": {"chat": 60}, "C": {"chat": 60, "instruct": 60}}.items():
        values[f"variants__{variant}__mix"] = mix
        values[f"variants__{variant}__train__max_steps"] = 4
        values[f"variants__{variant}__train__logging_steps"] = 2
    project.set(**values, variants__B__train__eval_steps=2, variants__C__train__eval_steps=2)
    project.commit("start")
    return project


def new_project(folder: Path, model: Path) -> Workspace:
    """This repository's own files with a model at models/own/small, in an empty Git repository."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROJECT_FILES:
        if (ROOT / name).is_dir():
            # With the bytecode, which stays valid: a copy keeps the times of its files.
            ignore = shutil.ignore_patterns("cache", "tmp", "*.local", "small")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(model, folder / "models/own/small")
    project = Workspace(folder)
    project.git("init", "-q", "-b", "main")
    return project
