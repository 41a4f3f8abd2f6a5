"""Does training's model path compute what transformers does, for every architecture? `python -m benchmarks.gpu_models`.

Tiny random models, one per architecture, each with a random adapter. First, before Unsloth is imported and patches
anything, transformers and PEFT say each one's loss and gradients in float32, and in the machine's 16-bit format how much
of them rounding takes. Then the stage's own path (stages/train/model.py) computes the same rows padded and packed, and
trains for some steps; the architectures that Unsloth trains come last, so that no other meets its patches.

Measures the architectures named, or those that the results lack or have a fault of; each is printed and written as soon as it is known, to
benchmarks/results/gpu_models.json or `--results FILE`, and a fault is one line of the table:

loss, gradient: of the stage's path, relative to transformers' in float32
rounding: the same of transformers' own in 16 bit: what the format alone costs
packed: the packed gradient relative to the padded one; absent where the stage does not pack
four_bit: of the loss on a 4-bit base, relative to the one that eval finds on it; on a GPU
leak: change of a conversation's loss, in nats per token, when its neighbour in the packed row is another one
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abctune.core.files import write_json
from tests import small
from tests.llm.wrappers import WRAPPERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESULTS = Path(__file__).parent / "results/gpu_models.json"
STEPS, RANK, SEED = 6, 8, 3407
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
LATENT = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,  # as head_dim
    "v_head_dim": 64,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_state": 32,
    "mamba_chunk_size": 64,
    "layer_types": ["mamba", "attention"] * 2,
}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 64},
    "gemma3_text": {"query_pre_attn_scalar": 64},
    "gemma4_text": {"vocab_size_per_layer_input": 512},
    "phi3": {},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.125},
    "smollm3": {},
    "olmo2": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "glm4": {},
    "nemotron": {"hidden_act": "relu2"},
    "qwen3_moe": {"num_experts": 4, **EXPERTS},
    "gpt_oss": LOCAL_EXPERTS,
    "qwen3_5_text": LINEAR,
    "qwen3_next": {**LINEAR, "num_experts": 4, **EXPERTS},
    "deepseek_v3": {**EXPERTS, **LATENT},
    "ministral3": {},
    "mixtral": LOCAL_EXPERTS,
    "granitemoe": {"logits_scaling": 4.0, **LOCAL_EXPERTS},
    "granitemoehybrid": {"logits_scaling": 4.0, **LOCAL_EXPERTS, **MAMBA},
    "glm": {},
    "olmo3": {},
    "phi": {"num_key_value_heads": 4},
    "llama4_text": {**LOCAL_EXPERTS, "intermediate_size_mlp": 384},
    "gpt2": {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 512, **NO_DROPOUT},
    "stablelm": {},
    "starcoder2": {},
}
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 8, 8]}  # of half a head's size
# Of models that read images too, what their language model's config has.
TEXT_OF_WRAPPER: dict[str, dict[str, Any]] = {
    "gemma3": KINDS["gemma3_text"],
    "gemma4": KINDS["gemma4_text"],
    "llama4": KINDS["llama4_text"],
    "mistral3": {"model_type": "mistral", "sliding_window": None},
    "qwen2_5_vl": {"rope_parameters": SECTIONS},
    "qwen3_vl": {"rope_parameters": SECTIONS | {"mrope_interleaved": True}},
    "qwen3_5": KINDS["qwen3_5_text"],
}
NAMES = (*KINDS, *TEXT_OF_WRAPPER)
FOUR_BITS = ("llama", "qwen3", "gemma3_text", "granite", "mistral3")
Gradients = dict[str, torch.Tensor]
Rows = list[dict[str, np.ndarray]]


def conversations(seed: int = 0) -> Rows:
    """Some conversations of random ids; two of three tokens are supervised."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in (61, 17, 40, 90):
        ids = rng.integers(3, SHAPE["vocab_size"], length)
        rows.append({"input_ids": ids, "labels": np.where(np.arange(length) % 3 == 0, -100, ids)})
    return rows


def random_model(kind: str) -> PreTrainedModel:
    """A model of this architecture with random weights in float32; of a wrapper, a small vision tower too."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(SEED)
    if kind in KINDS:
        config = AutoConfig.for_model(kind, **SHAPE | KINDS[kind])
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _, tower = WRAPPERS[kind]
    config = AutoConfig.for_model(kind, text_config=SHAPE | TEXT_OF_WRAPPER[kind], vision_config=tower)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32)


def reference(kind: str, folder: Path, device: torch.device) -> dict[str, Any]:
    """Write a folder with the base; its adapter's weights, and transformers' own loss and gradients of both."""
    from peft import LoraConfig, get_peft_model

    from abctune.llm.auto_class import load_model
    from stages.train.plain import linear_layers, routers, unreached

    model = random_model(kind)
    # The same numbers in every format, so that formats are compared and not models.
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    model.save_pretrained(folder)
    small.chatml_tokenizer().save_pretrained(folder)
    if kind in TEXT_OF_WRAPPER:  # of some, the language model alone is loaded
        model = load_model(folder, torch.float32, None)
    lora = LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        target_modules="all-linear" if kind in KINDS else linear_layers(model),
        exclude_modules=routers(model) or None,
    )
    adapted = get_peft_model(model, lora).to(device)
    state = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    for name, parameter in state.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    weights = {name: parameter.detach().clone() for name, parameter in state.items()}
    # Gemma's own training code asks for the kinds of tokens: all of them are text.
    mark = kind.startswith("gemma") and kind in TEXT_OF_WRAPPER
    batches = [
        {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])} if mark else batch
        for batch in padded_batches()
    ]
    found = {"float32": loss_and_gradients(adapted, batches, None)}
    if device.type == "cuda":
        for parameter in adapted.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        found["bfloat16"] = loss_and_gradients(adapted, batches, torch.bfloat16)
    return {"adapter": weights, "unreached": unreached(adapted), **found}


def padded_batches(rows: Rows | None = None) -> list[dict[str, torch.Tensor]]:
    from stages.train.micro_batching import padded

    return [padded(rows or conversations())]


def packed_batches(rows: Rows | None = None) -> list[dict[str, torch.Tensor]]:
    from stages.train.micro_batching import packed

    return [packed(rows or conversations())]


def loss_and_gradients(
    model: Any, batches: list[dict[str, torch.Tensor]], autocast: torch.dtype | None
) -> tuple[float, Gradients]:
    """sum(nll) / supervised tokens over all batches, and its gradient by parameter."""
    device = next(model.parameters()).device
    model.train()
    model.zero_grad()
    count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.type, dtype=autocast or torch.float32, enabled=autocast is not None):
            loss = model(**batch, num_items_in_batch=torch.tensor(count, device=device)).loss
        loss.backward()
        total += loss.item()
    gradients = {
        name: parameter.grad.detach().float().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }
    return total, gradients


def apart(found: Gradients, wanted: Gradients) -> float:
    """Norm of the difference of all gradients, relative to the wanted ones'."""
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())[:4]
    difference = sum(float((found[name] - wanted[name]).pow(2).sum()) for name in wanted)
    return (difference / sum(float(value.pow(2).sum()) for value in wanted.values())) ** 0.5


def leak(model: Any, autocast: torch.dtype | None) -> float:
    """How much the loss of one conversation changes with its neighbours in a packed row."""
    losses = []
    for seed in (1, 2):
        rows = conversations(seed)
        for other in rows:
            other["labels"] = np.full_like(other["labels"], -100)
        rows[1] = conversations()[0]
        losses.append(loss_and_gradients(model, packed_batches(rows), autocast)[0])
    return abs(losses[0] - losses[1])


def measure(kind: str, root: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The stage's path with one architecture: what it loads, and how near it comes."""
    from abctune.core.params import load_params
    from abctune.llm.device import capability
    from stages.train.memory import supports_packing
    from stages.train.model import Base
    from stages.train.plain import UNSLOTH

    gpu = torch.cuda.is_available()
    params = load_params()
    recipe = params.train_of("B").model_copy(
        update={"load_in_4bit": False, "dtype": "auto", "gradient_checkpointing": "none"}
    )
    lora = params.lora_of("B").model_copy(
        update={"r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"}
    )
    started = time.perf_counter()
    base = Base(recipe, 512, root / kind)
    model = base.with_adapter(lora, SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = wanted["adapter"][name].to(parameter.device).float()
    autocast = torch.bfloat16 if gpu else None
    loss, gradients = loss_and_gradients(model, padded_batches(), autocast)
    true, right = wanted["float32"]
    found: dict[str, Any] = {
        "kernels": base.decisions["kernels"],
        "loss": abs(loss - true) / true,
        "gradient": apart(gradients, right),
    }
    if "bfloat16" in wanted:
        own, own_gradients = wanted["bfloat16"]
        found |= {
            "rounding_loss": abs(own - true) / true,
            "rounding_gradient": apart(own_gradients, right),
        }
    if kind in UNSLOTH and (not gpu or supports_packing(capability(), torch.bfloat16)):
        found["packed"] = apart(loss_and_gradients(model, packed_batches(), autocast)[1], gradients)
        found["leak"] = leak(model, autocast)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(STEPS):
        losses.append(loss_and_gradients(model, padded_batches(), autocast)[0])
        optimizer.step()
    found |= {"first": losses[0], "last": losses[-1], "unreached": base.decisions["unreached"]}
    if gpu and kind in FOUR_BITS:
        del model, base, optimizer
        found["four_bit"] = on_four_bits(kind, root, recipe, lora)
    found["seconds"] = round(time.perf_counter() - started, 1)
    return found


def on_four_bits(kind: str, root: Path, recipe: Any, lora: Any) -> float:
    """The loss of a fresh adapter, which changes nothing yet, on a 4-bit base: training's against eval's."""
    from abctune.llm.inference import load_for_inference
    from abctune.llm.likelihood import conversation_nll
    from stages.train.model import Base

    rows = conversations()
    base = load_for_inference(torch.bfloat16, base=root / kind, load_in_4bit=True)
    ids, labels = ([row[name].tolist() for row in rows] for name in ("input_ids", "labels"))
    count = sum(label != -100 for one in labels for label in one[1:])
    expected = sum(conversation_nll(base, ids, labels, 512)) / count
    model = Base(recipe.model_copy(update={"load_in_4bit": True}), 512, root / kind).with_adapter(lora, SEED)
    loss, gradients = loss_and_gradients(model, padded_batches(), torch.bfloat16)
    assert all(bool(value.isfinite().all()) for value in gradients.values())
    return abs(loss - expected) / expected


def tried(measured: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a measurement finds; one architecture's fault is a line of the table."""
    try:
        return measured(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        gc.collect()


def table_of(results: Path, machine: dict[str, str]) -> dict[str, Any]:
    """The results so far, if this machine made them: numbers of two are not mixed."""
    if results.is_file():
        table: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
        if {name: table[name] for name in machine} == machine:
            return table
    return {**machine, "models": {}}


def main(only: Sequence[str], results: Path) -> None:
    """Measure the named architectures, or those without a result."""
    from stages.train.plain import UNSLOTH

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    table = table_of(results, {"device": name, "torch": torch.__version__})
    right = {kind for kind, found in table["models"].items() if "error" not in found}
    kinds = sorted(only or set(NAMES) - right, key=lambda kind: (kind in UNSLOTH, kind))

    def keep(kind: str, found: dict[str, Any]) -> None:
        table["models"][kind] = found
        shown = {key: f"{value:.2g}" if isinstance(value, float) else value for key, value in found.items()}
        print(f"{kind:16} {shown}", flush=True)
        results.parent.mkdir(exist_ok=True, parents=True)
        write_json(results, table)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        wanted = {kind: tried(reference, kind, root / kind, device) for kind in kinds}
        for kind in kinds:
            keep(kind, wanted[kind] if "error" in wanted[kind] else tried(measure, kind, root, wanted[kind]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="what training's model path computes, per architecture")
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help="a model_type; default: those without a result"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the file to go on with (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(NAMES):
        parser.error(f"no such architecture: {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    main(arguments.kinds, arguments.results)
