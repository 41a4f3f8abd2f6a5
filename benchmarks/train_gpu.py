"""Training at the size of Llama-3.2-3B against what a user would pick instead: `python -m benchmarks.train_gpu`.

One card, one random-weight model of the exact shape, one list of conversations (length median 424, mean about 540,
cap 2048), the same 16 of them in every step, QLoRA r 16, adamw_8bit:

    a      plain transformers + PEFT + bitsandbytes, 4 x 4, gradient checkpointing
    b      Unsloth with the stock notebook's settings, 4 x 4 (its collator pads)
    c      this project: `python -m stages.train B`, profile full
    c16    the same with 16 GiB of GPU memory
    again  the same as c once more, with the kernels that c's run compiled: what a second variant finds
    report-A, report-B, report-C
           the student report's notebooks: as b with its own batch and number of steps; B and C with an evaluation every
           10 steps on as many rows as the report's 5 % are; the adapter of the lowest train loss saved when it is
           found, and a generation at the end
    t4     the same as c with what a T4 decides: sm_75, so float16 and padded rows, and 15 GiB

Each runs in a process of its own, all but `again` with empty compile caches, from process start to the saved adapter. c trains
without evaluations and live samples, which a and b do not make either. Writes benchmarks/results/train_gpu.json (`--results`)
after each contender and prints the table. `--only` without a name writes the model alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import GIT_IDENTITY, finding_project
from benchmarks.random_llama import write_llama

STARTED = time.perf_counter()  # before the imports that are measured

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/train_gpu.json"
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MAX_LENGTH, CONVERSATIONS = 2048, 16
WARM_UP = 5  # steps left out of tokens/s: the first ones compile
FLOP_PER_TOKEN = (
    12.9e9  # forward 2 and backward 2 per weight of 3.2 G (the frozen ones need no gradient of their own)
)
STEPS = {
    "a": 14,
    "b": 40,
    "c": 40,
    "again": 40,
    "c16": 40,
    "report-A": 60,
    "report-B": 40,
    "report-C": 40,
    "t4": 12,
}  # a's rate is steady after a few, and slow
# Of the report's notebooks: conversations a micro-batch, of which four make a step, and rows of an evaluation.
NOTEBOOKS = {"report-A": (2, 0), "report-B": (4, 750), "report-C": (4, 1500)}
BUDGET_GIB = {"c16": 16, "t4": 15}


def conversations(steps: int) -> list[dict[str, list[int]]]:
    """Random tokens with lengths like FineTome's; the first 10 to 50 % of each are a prompt without loss."""
    rng = random.Random(0)
    rows = []
    for _ in range(steps * CONVERSATIONS):
        length = min(MAX_LENGTH, max(32, int(rng.lognormvariate(6.05, 0.75))))
        ids = [rng.randrange(300, 128000) for _ in range(length)]
        prompt = int(length * rng.uniform(0.1, 0.5))
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


class Watch:
    """Times every optimizer step and counts what goes through the model, for any transformers Trainer."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.processed = 0  # tokens, padding included
        self.evaluations: list[float] = []  # seconds of each
        self.generation_seconds: float | None = None

    def install(self) -> None:
        import torch
        from transformers import Trainer, TrainerCallback

        watch, train, compute_loss = self, Trainer.train, Trainer.compute_loss

        class Times(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                watch.begun.append(time.perf_counter())

            def on_step_end(self, *_: Any, **__: Any) -> None:
                torch.cuda.synchronize()
                watch.ended.append(time.perf_counter())

        def timed_train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            trainer.add_callback(Times())
            return train(trainer, *args, **kwargs)

        def counted_loss(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if watch.begun and trainer.model.training:  # else it is c's probe, or an evaluation
                watch.processed += inputs["input_ids"].numel()
            return compute_loss(trainer, model, inputs, *args, **kwargs)

        Trainer.train, Trainer.compute_loss = timed_train, counted_loss

    def report(self, rows: list[dict[str, list[int]]], per_step: int) -> dict[str, Any]:
        import torch

        now = time.perf_counter()
        seconds = [end - begin for begin, end in zip(self.begun, self.ended, strict=True)]
        tokens = [
            sum(len(row["input_ids"]) for row in rows[i * per_step : (i + 1) * per_step])
            for i in range(len(seconds))
        ]
        rate = sum(tokens[WARM_UP:]) / sum(seconds[WARM_UP:])
        return {
            "tokens_per_second": round(rate),
            "tflops": round(rate * FLOP_PER_TOKEN / 1e12),
            "stage_seconds": round(now - STARTED, 1),
            "before_training_seconds": round(self.begun[0] - STARTED, 1),
            "first_step_seconds": round(seconds[0], 1),
            "training_seconds": round(self.ended[-1] - self.begun[0], 1),
            "steps": len(seconds),
            "step_seconds": [round(value, 2) for value in seconds],
            "padding": round(1 - sum(tokens) / self.processed, 3),
            "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        }


def arguments(steps: int, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "max_steps": steps,
        "warmup_steps": 50,
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "lr_scheduler_type": "linear",
        "optim": "adamw_8bit",
        "bf16": True,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "train_sampling_strategy": "sequential",  # so that every contender's steps hold the same conversations
    }


def plain(model_folder: Path, steps: int, watch: Watch) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.bfloat16, device_map={"": 0}, quantization_config=four_bit
    )
    model = prepare_model_for_kbit_training(model)
    model = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    )
    watch.install()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments(steps, "out"), gradient_checkpointing=True),
        train_dataset=Dataset.from_list(conversations(steps)),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    model.save_pretrained("adapter")


def notebook_model(model_folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer as the stock notebook makes them."""
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(model_folder), max_seq_length=MAX_LENGTH, dtype=None, load_in_4bit=True
    )
    adapted = FastLanguageModel.get_peft_model(
        model,
        r=16,
        target_modules=TARGETS,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=3407,
    )
    return adapted, tokenizer


def notebook(model_folder: Path, steps: int, watch: Watch) -> None:
    import unsloth  # noqa: F401  (before the libraries that it patches)  # isort: skip
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = notebook_model(model_folder)
    watch.install()
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(conversations(steps)),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        args=SFTConfig(**arguments(steps, "out"), max_length=MAX_LENGTH, packing=False),
    )
    trainer.train()
    model.save_pretrained("adapter")


def report(name: str, model_folder: Path, steps: int, watch: Watch) -> None:
    """A notebook of the student report."""
    from unsloth import FastLanguageModel  # isort: skip
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class CheckpointCallback(TrainerCallback):
        lowest = float("inf")

        def on_log(self, *_: Any, logs: dict[str, float], model: Any, **__: Any) -> None:
            if logs.get("loss", self.lowest) < self.lowest:
                self.lowest = logs["loss"]
                model.save_pretrained("adapter")

    micro_batch, held_out = NOTEBOOKS[name]
    model, tokenizer = notebook_model(model_folder)
    watch.install()
    rows = conversations(max(steps, -(-held_out // CONVERSATIONS)))
    evaluation = {"eval_strategy": "steps", "eval_steps": 10} if held_out else {}
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:held_out]) if held_out else None,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[CheckpointCallback()],
        args=SFTConfig(
            **arguments(steps, "out") | {"per_device_train_batch_size": micro_batch} | evaluation,
            max_length=MAX_LENGTH,
            packing=False,
        ),
    )
    evaluate = trainer.evaluate

    def timed(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        found = evaluate(*given, **named)
        watch.evaluations.append(round(time.perf_counter() - started, 2))
        return found

    trainer.evaluate = timed
    trainer.train()
    started = time.perf_counter()
    FastLanguageModel.for_inference(model)
    prompt = tokenizer("A question of the evaluation list", return_tensors="pt").to("cuda")
    model.generate(**prompt, max_new_tokens=64, min_new_tokens=64)
    watch.generation_seconds = round(time.perf_counter() - started, 2)


def ours(model_folder: Path, steps: int, watch: Watch) -> None:
    """The stage itself, in a folder with the model and the conversations where the stages before it put them."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from ruamel.yaml import YAML

    rows = conversations(steps)
    for row in rows:
        row |= {"source": "chat", "n_tokens": len(row["input_ids"])}
        row["n_supervised"] = sum(label != -100 for label in row["labels"])
    Path("data/split/B").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), "data/split/B/train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:64]), "data/split/B/val.parquet")
    Path("models").mkdir()
    Path("models/base").symlink_to(model_folder)
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    params["profile"] = "full"
    params["variants"]["B"]["train"] |= {"max_steps": steps, "eval_steps": 0}
    params["profiles"]["full"]["replicates"] = 1
    params["train"]["save_steps"] = 0
    with Path("params.yaml").open("w") as file:
        YAML().dump(params, file)
    subprocess.run("git init -q && git commit -q --allow-empty -m start", shell=True, check=True)

    import stages.train.__main__ as stage
    import stages.train.by_unsloth  # noqa: F401  (Unsloth, before transformers)
    from stages.train.callbacks import LiveSamples

    LiveSamples._sample = lambda *_, **__: None  # type: ignore[method-assign]
    watch.install()
    stage.main(variant="B")


def limit_memory(gib: float) -> None:
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)


def pretend_t4() -> None:
    """Let this process take the card for a T4: compute capability 7.5, which has no bfloat16."""
    import torch
    from triton.runtime import driver

    driver.active.get_current_target()  # Triton keeps the true one, for which it compiles

    torch.cuda.get_device_capability = lambda *_: (7, 5)  # type: ignore[assignment]
    torch.cuda.is_bf16_supported = lambda *_, **__: False  # type: ignore[assignment]


def one(name: str, model_folder: Path) -> dict[str, Any]:
    """Run a contender in this process, in this folder."""
    if name in BUDGET_GIB:
        limit_memory(BUDGET_GIB[name])
    if name == "t4":
        pretend_t4()
    watch = Watch()
    if name in NOTEBOOKS:
        report(name, model_folder, STEPS[name], watch)
    else:
        {"a": plain, "b": notebook}.get(name, ours)(model_folder, STEPS[name], watch)
    per_step = 4 * NOTEBOOKS[name][0] if name in NOTEBOOKS else CONVERSATIONS
    found = watch.report(conversations(STEPS[name]), per_step)
    if name in NOTEBOOKS:
        found |= {"evaluation_seconds": watch.evaluations, "evaluation_rows": NOTEBOOKS[name][1]}
        found["generation_seconds"] = watch.generation_seconds
    record = Path("models/B/training.json")
    if record.exists():
        written = json.loads(record.read_text())
        kept = ("micro_batching", "base_weights", "gradient_checkpointing", "dtype")
        found |= {key: written[key] for key in kept}
        found["repeated_steps"] = written["replicates"][0]["repeated_steps"]
    return found


def run(name: str, model_folder: Path) -> dict[str, Any]:
    """Run a contender in a process of its own."""
    kept = Path(tempfile.gettempdir()) / "train-gpu-compiled" / ("c" if name == "again" else name)
    if name != "again":
        shutil.rmtree(kept, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": f"{kept}/inductor",
            "TRITON_CACHE_DIR": f"{kept}/triton",
            "UNSLOTH_COMPILE_LOCATION": f"{kept}/unsloth",
        }
        environment = finding_project(os.environ | caches | GIT_IDENTITY | {"HF_HUB_OFFLINE": "1"})
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.train_gpu", "--one", name, str(model_folder)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds = time.perf_counter() - started
        print(done.stdout[-1500:], flush=True)
        if done.returncode or not Path(folder, "result.json").exists():
            return {"failed": done.returncode}
        found = json.loads(Path(folder, "result.json").read_text())
        return found | {"stage_seconds": round(seconds, 1)}


def table(results: dict[str, dict[str, Any]]) -> str:
    columns = {
        "tokens/s": "tokens_per_second",
        "TFLOP/s": "tflops",
        "stage (s)": "stage_seconds",
        "steps": "steps",
        "peak (GiB)": "peak_reserved_gib",
        "padding": "padding",
    }
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, found in results.items():
        cells = [str(found.get(key, "failed")) for key in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def record(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    import torch

    from abctune.core.provenance import hardware, versions

    lengths = sorted(len(row["input_ids"]) for row in conversations(40))
    return {
        "card": torch.cuda.get_device_name(),
        "results": results,
        "settings": {
            "shape": SHAPE,
            "conversations_per_step": CONVERSATIONS,
            "median_tokens": lengths[len(lengths) // 2],
            "mean_tokens": round(sum(lengths) / len(lengths)),
            "warm_up_steps": WARM_UP,
            "budget_gib": BUDGET_GIB,
        },
        "versions": versions(),
        "hardware": hardware(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(STEPS))
    parser.add_argument(
        "--add", action="store_true", help="go on with the results file, which is of this machine"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write, as JSON")
    parser.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "llama-3b-random")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = one(options.one[0], Path(options.one[1]))
        Path("result.json").write_text(json.dumps(found))
        return

    import torch

    from abctune.core.files import write_json

    if not (options.model / "source.json").exists():
        shutil.rmtree(options.model, ignore_errors=True)
        write_llama(options.model, rope_parameters=ROPE, **SHAPE)
        torch.cuda.empty_cache()
    results = json.loads(options.results.read_text())["results"] if options.add else {}
    for name in options.only:
        results[name] = run(name, options.model)
        print(name, results[name], flush=True)
        write_json(options.results, record(results))  # at once: a lent machine can be taken back
    print(table(results))


if __name__ == "__main__":
    main()
