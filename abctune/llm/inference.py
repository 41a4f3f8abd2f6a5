"""A trained or untuned model for scoring and generating: stock transformers and PEFT, as a user would load it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abctune.core.adapters import WEIGHTS, require_adapter
from abctune.core.errors import UserError
from abctune.core.places import BASE_MODEL
from abctune.llm.auto_class import load_model, nf4
from abctune.llm.chat import prompt_ids
from abctune.llm.conversation import Message, Tools
from abctune.llm.decoding import greedy, is_plain, is_whole
from abctune.llm.device import device, free_bytes
from abctune.llm.lookups import positions, require_entries
from abctune.llm.stops import stop_token_ids
from abctune.llm.thoughts import answer_ids
from abctune.llm.weights import weight_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORKING_BYTES = 3 * 2**30  # next to the weights: a batch's activations, a chunk of its logits


def load_for_inference(
    dtype: torch.dtype, adapter: Path | None = None, base: Path = BASE_MODEL, load_in_4bit: bool = False
) -> PreTrainedModel:
    """The base model, with an adapter on it if one is given, in eval mode on the machine's device, or on all its GPUs if one cannot hold it.

    Args:
        dtype: the number format that it computes in, and whose weights it has.
        adapter: folder of the adapter.
        base: folder of the base model.
        load_in_4bit: with its linear layers' weights rounded to NF4, as `load_in_4bit` of training does it. They are
            unpacked at once: the same numbers, as fast as other weights, and without their saving of memory.

    Raises:
        UserError: the base model or the adapter is missing or does not fit.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # for "Loading weights", a second's work
    if not (base / "config.json").exists():
        raise UserError(
            f"{base}/config.json not found; `dvc repro fetch-model` makes it, or `dvc pull` brings it"
        )
    where = placement(weight_bytes(base, bytes_each=dtype.itemsize))
    model = load_model(base, dtype, nf4(dtype) if load_in_4bit else None, **where)
    if away := {"cpu", "disk"} & set(map(str, getattr(model, "hf_device_map", {}).values())):
        place = " and ".join(sorted(away))
        print(
            f"warning: {base} does not fit the GPUs whole; what is left is read from {place} at every batch, slowly"
        )
    if load_in_4bit:
        model = model.dequantize().to(dtype)
    # Triton launches a kernel on the current GPU, whose pointers into another GPU's memory it refuses.
    if torch.cuda.is_available():
        (fuse if is_whole(model) else restore_rotary)(model)
    return (model if adapter is None else _with_adapter(model, adapter, base)).eval()


def placement(weights: int) -> dict[str, Any]:
    """Where from_pretrained puts a model whose weights take so many bytes: on one device, or layer by layer on several.

    Several GPUs where one has no room for the weights and WORKING_BYTES, which each keeps free.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2 or weights + WORKING_BYTES <= free_bytes():
        return {"device_map": device()}
    return {
        "device_map": "auto",
        "max_memory": {index: max(0, free_bytes(index) - WORKING_BYTES) for index in range(count)},
    }


ROTARY = "apply_rotary_pos_emb"
_rotary: dict[str, Any] = {}  # by an architecture's module: its own function, before Liger's replaced it


def fuse(model: PreTrainedModel) -> None:
    """Give a model on a GPU Liger's kernels for everything between its matrix products: a quarter less time.

    The one for rotary embeddings replaces the module's function, for every model of the architecture.
    """
    from transformers.integrations.liger import apply_liger_kernel

    module = sys.modules[type(model).__module__]
    _rotary.setdefault(module.__name__, getattr(module, ROTARY, None))
    logging.getLogger("liger_kernel").setLevel(
        logging.ERROR
    )  # it tells which kernels for other devices it lacks
    apply_liger_kernel(
        model,
        {
            "rope": True,
            "rms_norm": True,
            "swiglu": True,
            # The loss is made here, a part of the logits at a time.
            "cross_entropy": False,
            "fused_linear_cross_entropy": False,
        },
    )


def restore_rotary(model: PreTrainedModel) -> None:
    """Give a model that is on several GPUs transformers' rotary embeddings, if `fuse` has replaced them before."""
    name = type(model).__module__
    if _rotary.get(name):
        setattr(sys.modules[name], ROTARY, _rotary[name])


def _with_adapter(model: PreTrainedModel, adapter: Path, base: Path) -> PreTrainedModel:
    from peft import PeftModel
    from safetensors import SafetensorError

    remedy = _remedy(adapter)
    require_adapter(adapter, base, remedy)
    try:
        # In the base's number format, as training multiplies it: PEFT's float32 halves an H100's speed.
        return PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{adapter} does not load on {base} ({str(error).splitlines()[0]}); {remedy}"
        ) from None


def _remedy(adapter: Path) -> str:
    """What makes an adapter, models/VARIANT or models/replicates/VARIANT/NUMBER."""
    variant = adapter.parent.name if adapter.parent.parent.name == "replicates" else adapter.name
    return f"`dvc repro train@{variant}` makes it, or `dvc pull` brings it"


def replace_adapter(model: PreTrainedModel, adapter: Path) -> None:
    """Replace the loaded adapter's weights with another's; the result equals loading base and adapter again.

    Args:
        model: what `load_for_inference` made with an adapter of the same settings.

    Raises:
        UserError: the adapter is missing, damaged, or has other weights than the loaded one.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = adapter / WEIGHTS
    remedy = _remedy(adapter)
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} not found; {remedy}") from None
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from None
    shapes = {name: weight.shape for name, weight in get_peft_model_state_dict(model).items()}
    if {name: weight.shape for name, weight in weights.items()} != shapes:
        raise UserError(f"{path} has other weights than the variant's published adapter; {remedy}")
    set_peft_model_state_dict(model, weights)


@dataclass(frozen=True)
class Answer:
    """A reply to one prompt."""

    text: str
    token_ids: list[int]  # without the stop token
    stopped: bool  # ended with a stop token, not at the limit
    after_thoughts: str  # the text without what the model thought first


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    tools: Sequence[Tools | None] | None = None,
) -> list[Answer]:
    """Greedy answers to a batch of conversations that each await a reply, with the tools that each may call.

    Where the model's positions end before `max_new_tokens`, so do its answers.

    Raises:
        UserError: as require_entries.
    """
    prompts = [
        prompt_ids(tokenizer, messages, known)
        for messages, known in zip(conversations, tools or [None] * len(conversations), strict=True)
    ]
    width = max(map(len, prompts))
    require_entries(model, max(map(max, prompts)), width + 1)
    if (places := positions(model)) is not None:
        max_new_tokens = min(max_new_tokens, places - width)
    # Padding goes in front, so that every prompt ends where generation begins.
    input_ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(ids)) + ids for ids in prompts])
    attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    stops, pad = stop_token_ids(tokenizer), tokenizer.pad_token_id
    asked = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
    with cached(model):
        if model.device.type == "cuda" and is_plain(model):
            answers = greedy(model, **asked, max_new_tokens=max_new_tokens, stops=stops, pad=pad)
        else:
            answers = model.generate(
                **asked,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(stops),
                pad_token_id=pad,
            )[:, width:]
    return [
        _answer(tokenizer, prompt, ids, stops) for prompt, ids in zip(prompts, answers.tolist(), strict=True)
    ]


def _answer(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], ids: list[int], stops: frozenset[int]
) -> Answer:
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[:end]
    text, after_thoughts = (
        tokenizer.decode(part, skip_special_tokens=True).strip()
        for part in (kept, answer_ids(tokenizer, prompt, kept))
    )
    return Answer(text, kept, end is not None, after_thoughts)


@contextmanager
def cached(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode with the key-value cache on; the earlier state is restored, whatever happens."""
    config = model.config.get_text_config()  # of a vision wrapper, which has none itself
    training, use_cache = model.training, config.use_cache
    model.eval()
    config.use_cache = True
    try:
        yield
    finally:
        config.use_cache = use_cache
        model.train(training)
