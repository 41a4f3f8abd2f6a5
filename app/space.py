"""Write a folder that runs the demo elsewhere, as a Hugging Face Space or a Docker build: `python -m app.space OUT`.

It holds everything that the demo needs on a CPU: its code, the base as GGUF, and the adapters, already converted. So
nothing is downloaded when it starts, and torch is not needed.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output, write_text
from abctune.core.params import Params, load_params
from abctune.core.places import BASE_MODEL
from app.engines.choose import CACHE, gguf_of_base
from app.engines.lora_gguf import gguf_of
from app.models import UNSCORED, Models, find_models, write_converted
from app.revision import RESULTS, fetch_revision

ROOT = Path(__file__).parent.parent
# What `python -m app` imports with llama.cpp (a test starts it with nothing else). What these need in turn is left to
# pip: Hugging Face adds packages of its own.
REQUIREMENTS = (
    "gradio",
    "jinja2",
    "llguidance",
    "markdown-it-py",
    "nh3",
    "numpy",
    "psutil",
    "pyarrow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "transformers",
    "typer",
    "xllamacpp",
)
BASE_FILES = ("config.json", "source.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ADAPTER_FILES = ("adapter_config.json", "training.json", "README.md")
RUN = '''"""What Hugging Face and Docker start."""

import runpy
import sys

sys.argv[1:] = ["--host", "0.0.0.0", "--engine", "llama.cpp", "--framed-by", "https://huggingface.co", *sys.argv[1:]]
runpy.run_module("app", run_name="__main__")
'''
LARGE_FILES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.gguf", "*.safetensors", "tokenizer.json")
)


@exits_with_one_line
def main(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet.")],
    rev: Annotated[
        str | None, typer.Option(help="Git revision or experiment to take the adapters from.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Serve only the base and this variant.")] = None,
) -> None:
    """Write a folder with the demo, its models and what starts it."""
    if out.exists():
        raise UserError(f"{out} is there already; name another folder, or delete it")
    root = fetch_revision(rev) if rev else Path()
    params = load_params(root / "params.yaml")
    models = find_models(root, BASE_MODEL, params, only=variant)
    for problem in models.problems:
        print(f"warning: {problem}", file=sys.stderr)
    for name in sorted(models.unscored & set(models.adapters)):
        print(f"warning: {name}: {UNSCORED}; its figures in the Space are an earlier one's", file=sys.stderr)
    if not models.adapters:
        raise UserError("no adapter can be served; `dvc repro` makes them, or `dvc pull` brings them")
    with atomic_output(out) as folder:
        _copy_code(folder)
        shutil.copy(root / "params.yaml", folder)
        _copy_models(folder, root, models)
        write_text(folder / "run.py", RUN)
        write_text(folder / ".gitattributes", LARGE_FILES)
        write_text(folder / "packages.txt", "libgomp1\n")  # llama.cpp's threads
        pins = "".join(f"{name}=={version(name)}\n" for name in REQUIREMENTS)
        write_text(folder / "requirements.txt", pins)
        # The revision's commit names the folder that fetch_revision made.
        write_text(folder / "README.md", readme(params, models, root.name if rev else None))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {', '.join(models.names)}, {size / 1e6:,.0f} MB. Try it: cd {out} && python run.py")


def _copy_code(folder: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "local", "Dockerfile", ".gitignore")
    shutil.copytree(ROOT / "app", folder / "app", ignore=ignore)
    for part in ("core", "llm", "study"):  # of study, a vote's record
        shutil.copytree(ROOT / "abctune" / part, folder / "abctune" / part, ignore=ignore)
    shutil.copy(ROOT / "abctune/__init__.py", folder / "abctune/__init__.py")
    shutil.copy(ROOT / "app/Dockerfile", folder)


def _copy_models(folder: Path, root: Path, models: Models) -> None:
    base = folder / BASE_MODEL
    base.mkdir(parents=True)
    gguf = gguf_of_base(models.base)
    if gguf is None:
        raise UserError(
            f"{models.base}/base.gguf not found: a Space has a CPU and needs the base as GGUF (docs/app.md)"
        )
    shutil.copy(gguf, base / "base.gguf")
    _copy_files(models.base, base, BASE_FILES)
    for name, adapter in models.adapters.items():
        target = folder / "models" / name
        target.mkdir(parents=True)
        _copy_files(adapter.path, target, ADAPTER_FILES)
        gguf = gguf_of(adapter.path, adapter.sha256, models.base, CACHE)
        write_converted(target, gguf, adapter)  # in place of the original: one copy of an adapter is enough
    for name in RESULTS:
        if (root / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(root / name, folder / name)


def _copy_files(source: Path, target: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).exists():
            shutil.copy(source / name, target)


def readme(params: Params, models: Models, commit: str | None) -> str:
    """The Space's README.md: what Hugging Face reads on top, what people read below."""
    model = params.active.model
    # A model of the hub is named as the hub wants it; one from elsewhere is no model of the hub.
    of_hub = f"models:\n  - {model.repo}\n" if model.origin == "hub" else "models: []\n"
    rows = "\n".join(
        f"| {name} | {'' if name not in models.losses else f'{models.losses[name]:.3f}'} | {models.sha256(name) or ''} |"
        for name in models.names
    )
    return f"""---
title: abctune
emoji: 💬
colorFrom: green
colorTo: gray
sdk: gradio
sdk_version: {version("gradio")}
python_version: "{sys.version_info.major}.{sys.version_info.minor}"
app_file: run.py
license: {model.license.lower()}
{of_hub}---

# abctune

A chat with a base model and what was fine-tuned from it, on a CPU by llama.cpp. Base: {model.exactly}.
Adapters: {f"of Git commit {commit}" if commit else "of a workspace, so of no commit; `--rev` would pin one"}.

| model | test loss | SHA-256 of the adapter |
|---|---|---|
{rows}

`python run.py` starts it at http://127.0.0.1:7860 and `docker build .` makes an image. Votes of the Compare tab stay in
app/local/votes.jsonl, which a Space without storage of its own forgets when it restarts.
"""


if __name__ == "__main__":
    typer.run(main)
