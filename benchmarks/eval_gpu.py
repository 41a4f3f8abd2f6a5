"""Scoring at the size of Llama-3.2-3B against the card's ceiling: `python -m benchmarks.eval_gpu`.

conversation_nll (what the eval stage and the evaluation while training call) on random weights of the exact shape and
conversations of FineTome's lengths, in batches of profile full. The ceiling is what this card's bfloat16 matrix
products reach, at 2 FLOP per weight and token. Writes benchmarks/results/eval_gpu.json.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from abctune.core.files import write_json
from abctune.core.params import load_params
from abctune.core.provenance import hardware, versions
from abctune.llm.inference import fuse
from abctune.llm.likelihood import conversation_nll
from abctune.llm.prompts import PROMPTS
from benchmarks.train_gpu import ROPE, SHAPE, TARGETS, conversations
from stages.eval.fused import fuse_adapter
from stages.eval.generation import answer_all
from stages.eval.tasks import written_tasks
from tests import small

RESULTS = Path(__file__).parent / "results/eval_gpu.json"


def seconds(work, repeats: int = 1) -> float:
    """Per call, the first one left out."""
    work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def matmul_flops() -> float:
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, repeats=20)


def answers(model: Any, compared: int = 64) -> dict[str, Any]:
    """Seconds for the answers that eval asks of one adapter, and how many are as transformers' generate gives them.

    Args:
        compared: tokens of each answer that both ways generate: the slow one takes 0.1 s for each.
    """
    tokenizer = small.llama_tokenizer()
    prompts = [*PROMPTS, *(task.prompt for task in written_tasks(120))]
    tokens = load_params().profiles["full"].eval.max_new_tokens
    answer_all(model, tokenizer, prompts[:4], 8)  # starts what is started once
    found: dict[str, Any] = {"prompts": len(prompts), "tokens": tokens}
    torch.cuda.reset_peak_memory_stats()

    def timed(name: str, count: int) -> list[list[int]]:
        torch.cuda.synchronize()
        started = time.perf_counter()
        given = answer_all(model, tokenizer, prompts, count)
        found[name] = round(time.perf_counter() - started, 2)
        print(f"{name}: {found[name]} s for {sum(len(one.token_ids) for one in given):,} tokens", flush=True)
        return [one.token_ids for one in given]

    graph = timed("seconds", tokens)
    found["peak_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    with patch("abctune.llm.inference.is_plain", lambda _: False):
        stock = timed(f"seconds_of_generate_for_{compared}_tokens", compared)
    pairs = list(zip(graph, stock, strict=True))
    found["equal_answers"] = sum(one[:compared] == other for one, other in pairs)
    equal = [sum(a == b for a, b in zip(one, other, strict=False)) for one, other in pairs]
    found["equal_tokens_share"] = round(sum(equal) / max(1, sum(len(other) for other in stock)), 4)
    return found


def main() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=ROPE)).eval()
    torch.set_default_dtype(torch.float32)
    weights = sum(weight.numel() for weight in model.parameters())  # the head is the embedding, once
    rows = conversations(steps=60)
    columns = [[row[name] for row in rows] for name in ("input_ids", "labels")]
    batch_tokens = load_params().profiles["full"].eval.batch_tokens
    tokens = sum(map(len, columns[0]))
    ceiling = matmul_flops() / (2 * weights)

    def score(name: str) -> dict[str, Any]:
        found = []
        spent = seconds(lambda: found.append(conversation_nll(model, *columns, batch_tokens)))
        loss = sum(found[0]) / sum(label != -100 for labels in columns[1] for label in labels[1:])
        rate = tokens / spent
        print(
            f"{name}: {rate:,.0f} tokens/s, {rate / ceiling:.1%} of the ceiling, loss {loss:.5f}", flush=True
        )
        return {
            "seconds": round(spent, 2),
            "tokens_per_second": round(rate),
            "share_of_ceiling": round(rate / ceiling, 3),
            "loss": round(loss, 5),
        }

    scored = {"stock transformers": score("stock transformers")}
    fuse(model)
    scored["base"] = score("base")
    # As load_for_inference puts it on; random, so that it is not nothing.
    lora = LoraConfig(r=16, target_modules=TARGETS, init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(model, lora, autocast_adapter_dtype=False).eval()
    scored["adapter as PEFT computes it"] = score("adapter as PEFT computes it")
    fuse_adapter(model)
    scored["adapter"] = score("adapter")
    result = {
        "answers": answers(model),
        "card": torch.cuda.get_device_name(),
        "conversations": len(rows),
        "tokens": tokens,
        "batch_tokens": batch_tokens,
        "ceiling_tokens_per_second": round(ceiling),
        "scored": scored,
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "versions": versions(),
        "hardware": hardware(),
    }
    write_json(RESULTS, result)


if __name__ == "__main__":
    main()
