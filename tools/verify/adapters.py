"""Whether each adapter fits its base: every layer it should have, in the base's shapes, and all of it numbers.

Read from the files' headers, so that a 3B base costs no memory. PEFT itself only warns of layers that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from abctune.core.adapters import CONFIG, WEIGHTS, require_adapter
from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.core.places import BASE_MODEL
from abctune.llm.auto_class import auto_class

PREFIX, HEAD, EMBEDDING = "base_model.model.", "lm_head", "model.embed_tokens"

Shapes = dict[str, tuple[int, ...]]


def adapter_faults(adapter: Path, base: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What keeps the adapter from working on a base whose linear layers have these (out, in) shapes."""
    remedy = f"`dvc repro --force --single-item train@{adapter.name}` makes it again"
    try:
        require_adapter(adapter, BASE_MODEL, remedy)
        config = read_json(adapter / CONFIG, f"train@{adapter.name}")
        found = shapes_of(adapter / WEIGHTS)
    except UserError as error:
        yield str(error)
        return
    if config.get("peft_type") != "LORA" or config.get("base_model_name_or_path") != str(BASE_MODEL):
        yield f"{adapter / CONFIG} is not that of a LoRA adapter on {BASE_MODEL}; {remedy}"
        return
    wanted = expected(config, base)
    if set(wanted) != set(found):
        # Experts in one tensor, vision wrappers: the files name their layers otherwise than the model does.
        wanted = by_peft(adapter) or wanted
    for name in sorted(set(wanted) | set(found)):
        if found.get(name) != wanted.get(name):
            ours, theirs = (shape_in_words(shapes.get(name)) for shapes in (found, wanted))
            yield f"{adapter / WEIGHTS} does not fit {BASE_MODEL}: {name} is {ours}, should be {theirs}; {remedy}"
            return  # one layer is enough to say so


def expected(config: dict[str, Any], base: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Names and shapes of the adapter's tensors: A is (r, in), B is (out, r), for every layer that is targeted.

    Targets are a module's last name or, of a vision wrapper, all of it.
    """
    rank, targets = int(config.get("r") or 0), set(config.get("target_modules") or ())
    shapes: Shapes = {}
    for module, (out, into) in base.items():
        if module in targets or module.rpartition(".")[2] in targets:
            shapes[f"{PREFIX}{module}.lora_A.weight"] = (rank, into)
            shapes[f"{PREFIX}{module}.lora_B.weight"] = (out, rank)
    return shapes


def by_peft(adapter: Path) -> Shapes | None:
    """Names and shapes of the adapter's tensors as PEFT itself makes them on this base's config; None where it cannot."""
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig

    try:
        with torch.device("meta"):  # shapes without numbers, so without memory
            model = auto_class(BASE_MODEL).from_config(AutoConfig.from_pretrained(BASE_MODEL))
            adapted = get_peft_model(model, PeftConfig.from_pretrained(adapter))
        made = get_peft_model_state_dict(adapted)
    except (UserError, ValueError, KeyError, OSError):
        return None
    return {name: tuple(tensor.shape) for name, tensor in made.items()}


def linear_layers(base: Path = BASE_MODEL) -> Shapes:
    """(out, in) of the base model's matrices, by module.

    Raises:
        UserError: there are no weights, or a file of them is cut short or no safetensors.
    """
    shapes: Shapes = {}
    for path in sorted(base.glob("*.safetensors")):
        shapes |= shapes_of(path)
    if not shapes:
        raise UserError(f"{base} has no weights; `dvc repro fetch-model` makes it, or `dvc pull` brings it")
    layers: Shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    if EMBEDDING in layers:
        layers.setdefault(HEAD, layers[EMBEDDING])  # tied: stored once
    return layers


def shapes_of(path: Path) -> Shapes:
    """Each tensor's shape. The reader checks that the file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None


def shape_in_words(shape: tuple[int, ...] | None) -> str:
    """A shape for a message: `8 x 576`, or `absent`."""
    return "absent" if shape is None else " x ".join(map(str, shape))
