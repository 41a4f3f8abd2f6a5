"""What happens to a small random model of an architecture on its way through the project, step by step, on a CPU.

`python -m tests.make_models_page --run` writes what it finds into tests/llm/whole_path.json, of which docs/models.md's table
is made; a test (mark `faults`) finds the same again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from abctune.core.params import load_params
from abctune.llm.auto_class import auto_class
from abctune.llm.chat import prompt_ids
from abctune.llm.inference import load_for_inference
from abctune.llm.merge import load_merged, logits, rms
from abctune.llm.prompts import PROMPTS
from app.engines import Job
from app.engines.transformers_engine import TransformersEngine
from app.request import Sampling
from stages.export.write import sixteen_bit, write_merged
from stages.train.plain import add_adapter
from tests import small
from tests.llm.test_architectures import ARCHITECTURES, SHAPE
from tests.llm.wrappers import WRAPPERS, write_wrapper
from tools.verify.adapters import by_peft, shapes_of

RESULTS = Path(__file__).with_name("whole_path.json")  # written by tests.make_models_page
ASKED = [{"role": "user", "content": "hi"}]
BASE, ADAPTER = Path("models/base"), Path("models/A")
# What another order of float32 sums may change, as a share of the logits' spread: a product of n terms has a relative error of
# about sqrt(n) 2^-24, here n <= 256, and about 16 products follow each other: 16 * 16 * 6e-8 if all err to the same side.
SUMS = 1.6e-5
STEPS = ("load", "verify", "merged", "app")


def path_of(kind: str) -> dict[str, str]:
    """One architecture's steps; also of one that reads images."""
    tokenizer = small.chatml_tokenizer()
    lora = load_params().lora_of("B").model_copy(update={"r": 4})
    with TemporaryDirectory() as folder, chdir(folder):
        write_wrapper(kind, BASE) if kind in WRAPPERS else make_base(kind, tokenizer)
        make_adapter(lora)
        steps: dict[str, Callable[[], None]] = {
            "load": lambda: loads(tokenizer),
            "verify": is_in_order,
            "merged": lambda: merges(tokenizer),
            "app": lambda: answers(tokenizer),
        }
        return {name: outcome(steps[name]) for name in STEPS}


def outcome(step: Callable[[], None]) -> str:
    """`yes`, or why not."""
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:120]
    return "yes"


def make_base(kind: str, tokenizer) -> None:
    """models/base, with a vocabulary as large as the tokenizer's."""
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    if kind == "gpt2":
        size["n_positions"] = 1024
    if "vocab_size_per_layer_input" in ARCHITECTURES[kind]:
        size["vocab_size_per_layer_input"] = len(tokenizer)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **ARCHITECTURES[kind], **size})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(BASE)
    tokenizer.save_pretrained(BASE)


def make_adapter(lora) -> None:
    """models/A on the layers that training takes, with weights that do something."""
    model = add_adapter(auto_class(BASE).from_pretrained(BASE), lora, "none", seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(ADAPTER)


def prompt(tokenizer) -> list[int]:
    return prompt_ids(tokenizer, ASKED)


def loads(tokenizer) -> None:
    """The adapter changes what the base says, and without it the base is as it was."""
    ids = torch.tensor([prompt(tokenizer)])
    with torch.inference_mode():
        base = load_for_inference(torch.float32, base=BASE)(input_ids=ids).logits
        model = load_for_inference(torch.float32, ADAPTER, BASE)
        assert not torch.allclose(model(input_ids=ids).logits, base, atol=1e-3), "the adapter does nothing"
        with model.disable_adapter():
            assert torch.allclose(model(input_ids=ids).logits, base, atol=1e-5), "the base is another"


def is_in_order() -> None:
    """`verify` knows the adapter's layers and their shapes."""
    assert by_peft(ADAPTER) == shapes_of(ADAPTER / "adapter_model.safetensors"), (
        "other layers than PEFT makes"
    )


def merges(tokenizer) -> None:
    """`export` merged_16bit and `publish --merged`: the folder, read by stock transformers, says what was merged.

    That is as far from the adapter as the merged model in memory was, whose weights it has: both compute in float32.
    """
    merged, agreement = load_merged(ADAPTER, sixteen_bit(BASE), tokenizer)
    folder = Path("merged")
    folder.mkdir()
    write_merged(folder, merged, tokenizer)
    read = auto_class(folder).from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": one}]) for one in PROMPTS]
    moved = rms(logits(read, prompts) - logits(load_for_inference(torch.float32, ADAPTER, BASE), prompts))
    assert abs(moved - agreement.difference) < SUMS * agreement.spread, "another model is read"


def answers(tokenizer) -> None:
    """The chat's reference engine: base and adapter in one batch answer as each does alone."""
    engine = TransformersEngine(BASE, {"A": ADAPTER}, tokenizer, 256, torch.float32)

    def said(*models: str) -> list[str]:
        greedy = Sampling(temperature=0, repetition_penalty=1)
        found: list[list[str]] = [[] for _ in models]
        for piece in engine.stream([Job(model, prompt(tokenizer), 6, greedy) for model in models]):
            found[piece.index].append(piece.text)
        return ["".join(one) for one in found]

    alone = [said(model)[0] for model in ("base", "A")]
    assert said("base", "A") == alone, "in a batch it answers otherwise"
    assert alone[0] != alone[1], "the adapter changes no answer"
