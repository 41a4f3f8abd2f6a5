"""A base split over two GPUs, against the same base whole on one: `python -m benchmarks.sharding_gpu`.

Random Llamas of the shapes of Llama-3.1-8B and Llama-3.3-70B, conversations of 1,000 different tokens, so that there is
something to learn in a few steps, and the stage itself (`python -m stages.train B`, profile full, started as a user would):

    whole          8B in 16 bit, one GPU, Unsloth
    whole-2        the same by `accelerate launch --num_processes 2`, the base whole on each
    sharded-1      8B in 16 bit, FSDP2 over one process: sharded in name only
    budget         8B in 16 bit on one GPU with 15 GiB of memory: does not fit
    sharded-2      8B in 16 bit, FSDP2 over two GPUs of 15 GiB each; `sharding: auto` has to choose it
    qlora-1, -2    8B in 4 bit, FSDP2 over one and over two
    70b            70B in 4 bit, made on the devices layer by layer, FSDP2 over two
    eval           test loss of 8B on one GPU, and with `device_map: auto` on two of 13 GiB each

Runs of one GPU go two at a time. What a run printed is kept next to the models (`--models`). Writes benchmarks/results/sharding_gpu.json after each run.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import GIT_IDENTITY, finding_project
from benchmarks.random_llama import write_llama
from benchmarks.scale import SHAPES, model
from benchmarks.train_gpu import CONVERSATIONS, MAX_LENGTH, ROOT, Watch

RESULTS = Path(__file__).parent / "results/sharding_gpu.json"
GIB = 2**30
CEILING = 790  # TFLOP/s that bf16 products reach on an H100
WARM_UP = 2  # steps left out of tokens/s
COMMON = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
}
MODELS: dict[str, dict[str, Any]] = {
    "8b": COMMON
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": COMMON
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "2b": COMMON
    | {"vocab_size": 32768, "hidden_size": 3072, "intermediate_size": 8192}
    | {"num_hidden_layers": 28, "num_attention_heads": 24},
}
# name: (model, processes, train params, GiB of memory per card, steps)
SIXTEEN, FOUR, FSDP = {"load_in_4bit": False}, {"load_in_4bit": True}, {"sharding": "fsdp"}
Runs = dict[str, tuple[str, int, dict[str, Any], float | None, int]]
TWO_CARDS: Runs = {
    "whole": ("8b", 1, SIXTEEN, None, 20),
    "whole-2": ("8b", 2, SIXTEEN, None, 20),
    "sharded-1": ("8b", 1, FSDP | SIXTEEN, None, 20),
    "budget": ("8b", 1, SIXTEEN, 15, 20),
    "sharded-2": ("8b", 2, SIXTEEN, 15, 20),
    "qlora-1": ("8b", 1, FSDP | FOUR, None, 12),
    "qlora-2": ("8b", 2, FSDP | FOUR, None, 12),
    "70b": ("70b", 2, FSDP | FOUR, None, 6),
}
# Two processes on one card, each with its own budget, joined by gloo through the CPU: what fits and what is learned is
# as on two, how fast it goes is not. Hence a smaller model and short conversations; 70B is in one process.
ONE_CARD: Runs = {
    "whole": ("2b", 1, SIXTEEN, None, 8),
    "sharded-1": ("2b", 1, FSDP | SIXTEEN, None, 8),
    "budget": ("2b", 1, SIXTEEN, 5.8, 8),
    "sharded-2": ("2b", 2, SIXTEEN, 5.8, 8),
    "qlora-1": ("2b", 1, FSDP | FOUR, None, 8),
    "qlora-2": ("2b", 2, FSDP | FOUR, None, 8),
    "whole-2": ("2b", 2, SIXTEEN, None, 8),
    "70b": ("70b", 1, FSDP | FOUR, None, 3),
}
# What goes at the same time: runs of one card each, in pairs.
ORDER = [
    ["whole", "sharded-1"],
    ["budget", "qlora-1"],
    ["sharded-2"],
    ["qlora-2"],
    ["70b"],
    ["whole-2"],
    ["eval"],
]


def cards() -> int:
    import torch

    return torch.cuda.device_count()


def runs() -> Runs:
    return TWO_CARDS if cards() > 1 else ONE_CARD


def launcher(name: str, processes: int) -> list[str]:
    if name == "whole-2":
        several = [] if cards() > 1 else ["--multi_gpu"]
        return ["accelerate", "launch", *several, "--num_processes", "2"]
    if processes == 1 and name in ("whole", "budget"):
        return [sys.executable]
    return ["torchrun", "--standalone", "--nproc_per_node", str(processes)]


def conversations(steps: int, shape: str = "8b") -> list[dict[str, Any]]:
    """Random ids of which some are frequent; a quarter as long for the model of ONE_CARD."""
    shorter = 4 if shape == "2b" else 1
    rng = random.Random(0)
    rows = []
    for _ in range(steps * CONVERSATIONS):
        length = min(MAX_LENGTH, max(32, int(rng.lognormvariate(6.05, 0.75) / shorter)))
        ids = [300 + int(1000 * rng.random() ** 3) for _ in range(length)]
        prompt = int(length * rng.uniform(0.1, 0.5))
        row = {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "source": "chat"}
        rows.append(row | {"n_tokens": length, "n_supervised": length - prompt})
    return rows


def make_4bit(path: Path, dtype: Any, _load_in_4bit: bool) -> Any:
    """A random base in 4 bits, one matrix in 16 bits at a time; takes the place of sharded_model.load_whole."""
    import bitsandbytes as bnb
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    from abctune.llm.inference import fuse

    config = AutoConfig.from_pretrained(path)
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    with torch.device("meta"):
        whole = LlamaForCausalLM(config)
    for name, module in list(whole.named_modules()):
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            four = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=dtype,
                quant_type="nf4", quant_storage=torch.float32, device="meta",
            )  # fmt: skip
            weight = torch.randn(module.out_features, module.in_features, dtype=dtype, device=device) * 0.02
            four.weight = bnb.nn.Params4bit(
                weight,
                requires_grad=False,
                quant_type="nf4",
                quant_storage=torch.float32,
                compress_statistics=True,
                module=four,
            ).to(device)
            four.requires_grad_(False)
            parent = whole.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], four)
    for name, parameter in list(whole.named_parameters()):
        if parameter.is_meta:
            value = torch.ones if "norm" in name else torch.randn
            filled = value(parameter.shape, dtype=dtype, device=device) * (1 if "norm" in name else 0.02)
            parent = whole.get_submodule(name.rpartition(".")[0])
            parent.register_parameter(
                name.rpartition(".")[2], torch.nn.Parameter(filled, requires_grad=False)
            )
    whole.model.rotary_emb = type(whole.model.rotary_emb)(config=config).to(device)
    whole.is_loaded_in_4bit = True
    whole.config.use_cache = False
    fuse(whole)
    return whole


def prepare(folder: Path, base: Path, train: dict[str, Any], steps: int) -> None:
    """A project folder as the stages before train leave it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from ruamel.yaml import YAML

    rows = conversations(steps, base.name)
    (folder / "data/split/B").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/split/B/train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:64]), folder / "data/split/B/val.parquet")
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(base)
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    params["profile"] = "full"
    params["profiles"]["full"]["replicates"] = 1
    params["variants"]["B"]["train"] |= {
        "max_steps": steps,
        "eval_steps": 0,
        "warmup_steps": 2,
        "logging_steps": 1,
    }
    params["variants"]["B"]["train"]["learning_rate"] = 1e-3
    params["train"] |= {"save_steps": 0, "sample_every": 10_000} | train
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    subprocess.run("git init -q && git commit -q --allow-empty -m start", shell=True, check=True, cwd=folder)


def one(name: str) -> None:
    """A process of a run, in its folder."""
    import torch

    rank, local = os.environ.get("RANK", "0"), int(os.environ.get("LOCAL_RANK", "0"))
    shape, processes, _, budget, _ = runs()[name]
    local %= cards()
    if budget:
        total = torch.cuda.get_device_properties(local).total_memory
        torch.cuda.set_per_process_memory_fraction(budget * GIB / total, local)
    if processes > cards():
        from accelerate import PartialState

        PartialState(backend="gloo")  # NCCL refuses two processes on one card
    import stages.train.__main__ as stage
    import stages.train.sharding as sharding

    watch, found = Watch(), sharding.base_of

    def watched(run: Any) -> Any:
        base = found(run)  # imports Unsloth or not, before transformers
        if shape == "70b":
            import stages.train.sharded_model

            stages.train.sharded_model.load_whole = make_4bit
        from stages.train.callbacks import LiveSamples

        LiveSamples._sample = lambda *_, **__: None  # type: ignore[method-assign]
        watch.install()
        return base

    stage.base_of = watched
    stage.main(variant="B")
    seconds = [end - begin for begin, end in zip(watch.begun, watch.ended, strict=True)]
    card = {
        "step_seconds": [round(value, 3) for value in seconds],
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2)
        if torch.cuda.is_available()
        else 0,
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2)
        if torch.cuda.is_available()
        else 0,
    }
    Path(f"card-{rank}.json").write_text(json.dumps(card))


def run(name: str, models: Path, gpus: str) -> dict[str, Any]:
    shape, processes, train, budget, steps = runs()[name]
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        prepare(folder, models / shape, train, steps)
        settings = GIT_IDENTITY | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": gpus}
        environment = finding_project(os.environ | settings)
        started = time.perf_counter()
        done = subprocess.run(
            [*launcher(name, processes), "-m", "benchmarks.sharding_gpu", "--one", name],
            cwd=folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        (models / f"{name}.log").write_text(done.stdout + done.stderr)
        result: dict[str, Any] = {
            "processes": processes,
            "budget_gib": budget,
            "stage_seconds": round(seconds, 1),
        }
        cards = [json.loads(file.read_text()) for file in sorted(folder.glob("card-*.json"))]
        if done.returncode or not cards:
            text = done.stderr.replace("\r", "\n").splitlines()
            said = [line for line in text if "error:" in line or "Error" in line]
            said = [line for line in said if "ChildFailedError" not in line]
            return result | {"failed": [line[:300] for line in (said or text[-20:])[:3]]}
        lengths = [row["n_tokens"] for row in conversations(steps, shape)]
        tokens = [sum(lengths[i * CONVERSATIONS : (i + 1) * CONVERSATIONS]) for i in range(steps)]
        timed = cards[0]["step_seconds"]
        warm_up = min(WARM_UP, steps // 3)
        rate = sum(tokens[warm_up:]) / sum(timed[warm_up:])
        losses = (folder / "metrics/train/B/1/plots/metrics/train/loss.tsv").read_text().splitlines()[1:]
        record = json.loads((folder / "models/B/training.json").read_text())
        linear = matmul_weights(shape)
        tflops = {times: rate * times * linear / 1e12 / processes for times in (4, 6)}
        return result | {
            "loss": [round(float(line.split("\t")[1]), 4) for line in losses],
            "tokens_per_second": round(rate),
            "tflops_per_card": round(tflops[4]),
            "tflops_per_card_with_recomputing": round(tflops[6]),
            "share_of_ceiling": round(tflops[4] / CEILING, 3),
            "peak_reserved_gib": [card["peak_reserved_gib"] for card in cards],
            "peak_allocated_gib": [card["peak_allocated_gib"] for card in cards],
            "step_seconds": timed,
            **{key: record[key] for key in ("micro_batching", "base_weights", "gradient_checkpointing")},
        }


def matmul_weights(name: str) -> float:
    """Weights that a token is multiplied with."""
    shape = MODELS[name]
    h, i, kv = shape["hidden_size"], shape["intermediate_size"], 1024
    if name == "70b":
        return model(SHAPES["Llama-3.3-70B"])["gflop_per_token"] * 1e9 / 4
    return float(shape["num_hidden_layers"] * (2 * h * h + 2 * h * kv + 3 * h * i) + shape["vocab_size"] * h)


def evaluate(models: Path) -> dict[str, Any]:
    """Loss of the 8B base on one GPU, and over two with a budget that one of them exceeds."""
    import torch

    from abctune.llm.inference import load_for_inference
    from abctune.llm.likelihood import conversation_nll

    rows = conversations(2)
    found: dict[str, Any] = {}
    for name, budget in (("one", None), ("auto", 13)) if cards() > 1 else ():
        for index in range(torch.cuda.device_count()) if budget else ():
            total = torch.cuda.get_device_properties(index).total_memory
            torch.cuda.set_per_process_memory_fraction(budget * GIB / total, index)
        whole = load_for_inference(torch.bfloat16, base=models / "8b")
        started = time.perf_counter()
        ids, labels = ([row[key] for row in rows] for key in ("input_ids", "labels"))
        nll = sum(conversation_nll(whole, ids, labels, 8192))
        devices = sorted({str(parameter.device) for parameter in whole.parameters()})
        loss = nll / sum(row["n_supervised"] for row in rows)
        found[name] = {
            "loss": round(loss, 5),
            "devices": devices,
            "seconds": round(time.perf_counter() - started, 2),
        }
        del whole
        gc.collect()
        torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--eval", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*")
    parser.add_argument(
        "--add", action="store_true", help="go on with the results file, which is of such cards"
    )
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "random-llamas")
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    if options.eval:
        Path(options.eval).write_text(json.dumps(evaluate(options.models)))
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text())["runs"] if options.add else {}
    wanted = [name for name in runs() if not options.only or name in options.only]
    for name in {runs()[name][0] for name in wanted} | {"8b"}:
        if not (options.models / name / "source.json").exists():
            shutil.rmtree(options.models / name, ignore_errors=True)
            # Of 70B without weights, which are made on the devices.
            write_llama(
                options.models / name, weights=name != "70b", tie_word_embeddings=False, **MODELS[name]
            )
    for names in ORDER:
        names = [name for name in names if not options.only or name in options.only]
        if names == ["eval"]:
            out = options.models / "eval.json"
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.sharding_gpu",
                    "--eval",
                    str(out),
                    "--models",
                    str(options.models),
                ]
            )
            results["eval"] = json.loads(out.read_text()) if out.exists() else {"failed": "see above"}
        else:
            alone = all(runs()[name][1] == 1 for name in names)
            with ThreadPoolExecutor() as pool:
                gpus = ["0", "1" if cards() > 1 else "0"] if alone else ["0,1" if cards() > 1 else "0"]
                for name, result in zip(
                    names,
                    pool.map(
                        lambda job: run(job[0], options.models, job[1]), list(zip(names, gpus, strict=False))
                    ),
                    strict=True,
                ):
                    results[name] = result
        for name in names:
            print(name, json.dumps(results[name]), flush=True)
        RESULTS.write_text(json.dumps(summary(results), indent=2) + "\n")


def summary(results: dict[str, Any]) -> dict[str, Any]:
    import torch

    from abctune.core.provenance import hardware, versions

    def apart(one: str, other: str) -> float | None:
        curves = [results.get(name, {}).get("loss") for name in (one, other)]
        if not all(curves):
            return None
        return max(abs(a - b) for a, b in zip(*curves, strict=False) if not math.isnan(a + b))

    pairs = [("whole", "whole-2"), ("whole", "sharded-1"), ("sharded-1", "sharded-2"), ("qlora-1", "qlora-2")]
    return {
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "largest_difference_of_losses": {f"{a}, {b}": apart(a, b) for a, b in pairs},
        "predicted_70b": model(SHAPES["Llama-3.3-70B"]),
        "runs": results,
        "versions": versions(),
        "hardware": hardware(),
    }


if __name__ == "__main__":
    main()
