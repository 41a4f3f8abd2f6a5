"""How many bytes of a 4-bit base change where FSDP2 gathers them: `torchrun --standalone --nproc_per_node 2 -m tests.train.gathered MODEL`.

The trainer of the stage takes one step on a model folder's base in 4 bits, in bfloat16. Each process compares every
layer's packed weights, as they are when the layer is used, with those that it has loaded; the main one prints the result
as JSON. On CPUs, whose copies keep all bits, torch._foreach_copy_ does what it does on a GPU: 16-bit floats go through float32.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from accelerate.utils import gather_object
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from transformers import AutoTokenizer

from abctune.core.params import load_params
from stages.train.micro_batching import MicroBatching
from stages.train.processes import process_state
from stages.train.sharded_model import ShardedBase, fsdp_arguments
from stages.train.sharded_trainer import ShardedTrainer
from stages.train.trainer import build_trainer, training_arguments

LENGTH, STEP = 24, 16  # tokens of a conversation, conversations


def copy_as_a_gpu_does(targets, sources, _non_blocking=False):
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source.float() if source.dtype in (torch.bfloat16, torch.float16) else source)


def packed(layer):
    return layer.weight.detach().contiguous().view(torch.uint8).flatten().clone()


def main(path):
    state = process_state()
    if not torch.cuda.is_available():
        torch._foreach_copy_ = copy_as_a_gpu_does
    params = load_params()
    recipe = params.train_of("B", "tiny").model_copy(
        update={"dtype": "bfloat16", "load_in_4bit": True, "eval_steps": 0, "max_steps": 1}
    )
    model = ShardedBase(recipe, "asked for", path).with_adapter(params.lora_of("B"), seed=0)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    loaded, changed = [packed(layer) for layer in layers], [0] * len(layers)

    def compare(number):
        def before_use(layer, _inputs):
            changed[number] = int((packed(layer) != loaded[number]).sum())

        return before_use

    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(compare(number))
    ids = torch.arange(LENGTH).add(20).tolist()
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids}] * STEP)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            model,
            AutoTokenizer.from_pretrained(path),
            training_arguments(recipe, 0, folder, fsdp_arguments(model, recipe)),
            rows,
            rows,
            callbacks=[],
            eval_batch_tokens=LENGTH * STEP,
            micro_batching=MicroBatching(LENGTH * STEP, packed=False),
            kind=ShardedTrainer,
        )
        trainer.max_length = LENGTH
        trainer.train()
    found = {
        "bytes": sum(weights.numel() for weights in loaded),
        "changed": gather_object([sum(changed)]),
        "loss": trainer.state.log_history[0]["loss"],
    }
    if state.is_main_process:
        print(json.dumps(found))
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
