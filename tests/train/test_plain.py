"""Models that Unsloth has no kernels for: which layers are adapted, that the loss is transformers', that no row leaks."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from abctune.core.params import load_params
from abctune.llm.conversation import IGNORE
from stages.train.micro_batching import padded
from stages.train.plain import UNSLOTH, add_adapter, linear_layers, load, targets, unreached
from tests.llm.test_architectures import ARCHITECTURES, build
from tests.llm.wrappers import WRAPPERS, write_wrapper

PLAIN = tuple(name for name in ARCHITECTURES if name not in UNSLOTH)


def lora(**changes):
    return load_params().lora_of("B").model_copy(update={"r": 4, **changes})


def rows(seed):
    """Conversations of several lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for length in (9, 30, 17):
        ids = rng.integers(3, 110, length)
        found.append({"input_ids": ids, "labels": np.where(np.arange(length) % 3, ids, IGNORE)})
    return found


def loss(model, conversations):
    """As training computes it: sum(nll) / supervised tokens of all conversations, each gradient included."""
    batch = padded(conversations)
    count = torch.tensor(int((batch["labels"][:, 1:] != IGNORE).sum()))
    return model(**batch, num_items_in_batch=count).loss


@pytest.mark.parametrize("kind", PLAIN)
def test_a_models_loss_while_training_is_its_own_and_knows_no_neighbours(kind):
    base = build(kind)
    conversations = rows(0)
    with torch.inference_mode():
        alone = [
            base(
                input_ids=torch.from_numpy(row["input_ids"])[None],
                labels=torch.from_numpy(row["labels"])[None],
            ).loss.item()
            * int((row["labels"][1:] != IGNORE).sum())
            for row in conversations
        ]
    count = sum(int((row["labels"][1:] != IGNORE).sum()) for row in conversations)
    model = add_adapter(base, lora(target_modules="all-linear"), "none", seed=1)
    model.train()
    found = loss(model, conversations)
    assert found.item() == pytest.approx(sum(alone) / count, rel=1e-5)
    found.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    # The same conversation between others: its share of the loss stays what it is.
    others = [{**row, "labels": np.full_like(row["labels"], IGNORE)} for row in rows(7)]
    others[1] = conversations[1]
    share = alone[1] / int((conversations[1]["labels"][1:] != IGNORE).sum())
    assert loss(model, others).item() == pytest.approx(share, rel=1e-5)


# What `all-linear` leaves as it is, of language models with other layers than the usual ones.
UNREACHED = {
    "gemma4": ["embed_tokens_per_layer"],
    "llama4": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj", "model.feed_forward.router"],
    "qwen3_5": ["linear_attn.conv1d"],
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPERS)
def test_of_a_model_that_reads_images_too_the_language_model_alone_is_adapted_and_trains(kind, tmp_path):
    write_wrapper(kind, tmp_path)
    wrapper = load(tmp_path, SimpleNamespace(dtype="float32", load_in_4bit=False), 64, "none")
    usual = kind not in UNREACHED  # seven matrices a layer, which the recipe names
    model = add_adapter(wrapper, lora() if usual else lora(target_modules="all-linear"), "none", seed=1)
    text = {id(weight) for weight in model.get_base_model().get_decoder().parameters()}
    adapted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert adapted and {id(p) for p in adapted.values()} <= text
    assert not usual or len(adapted) == 2 * 7 * 2
    assert not any("vision" in name for name in adapted)
    model.train()
    loss(model, rows(0)).backward()
    assert all(p.grad.abs().sum() > 0 for name, p in adapted.items() if "lora_B" in name)
    assert unreached(model) == UNREACHED.get(kind, [])


def test_layers_that_the_adapter_does_not_reach_are_named():
    model = build("qwen3_5_text")
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert targets(model, lora(target_modules=tuple(names))) == names
    found = unreached(add_adapter(model, lora(target_modules=tuple(names)), "none", seed=1))
    assert "linear_attn.in_proj_qkv" in found and not any("mlp" in name for name in found)


def test_a_model_without_the_named_layers_gets_an_adapter_on_every_linear_layer():
    model = build("phi3")
    assert "model.layers.0.self_attn.qkv_proj" in linear_layers(model)
    assert targets(model, lora()) == "all-linear"
    assert unreached(add_adapter(model, lora(), "none", seed=1)) == []


@pytest.mark.parametrize(("kind", "by"), [("gemma3_text", "transformers"), ("llama", "Unsloth")])
def test_a_base_that_unsloth_does_not_train_never_meets_its_patches(tmp_path, kind, by):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    code = (
        "import sys; from pathlib import Path; from stages.train.model import kernels_for;"
        "print(kernels_for(Path(sys.argv[1])).NAME, 'unsloth' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{by} {by == 'Unsloth'}"
