"""From hidden states to logits exactly as a model does it, for a part of the positions at a time.

A causal language model is a backbone and a head, and most heads are one matrix. Some scale the logits (Granite
divides, Cohere multiplies) or cap them (Gemma). What is computed here is compared with the
logits of the model's own forward, once per model, and a model that disagrees is scored by its own forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKED_TOKENS = (
    24  # of the check's only row: enough for a sliding window or a router to matter, a moment's work
)
# Of the logits' spread. The check does what the model does, in the same shapes, so the difference is 0; a scale or a
# cap that is left out makes more than this.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Head:
    """The parts of a model that scoring calls in turn."""

    backbone: torch.nn.Module
    project: torch.nn.Module  # (n, hidden) -> (n, vocabulary)
    divisor: float = 1.0
    cap: float | None = None  # logits become cap x tanh(logits / cap)

    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states (rows, tokens, hidden) of ids (rows, tokens)."""
        found: torch.Tensor = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        return found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) of hidden states (..., hidden), in the model's number format."""
        logits: torch.Tensor = self.project(hidden)
        if self.divisor != 1.0:
            logits = logits / self.divisor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


_checked: WeakKeyDictionary[torch.nn.Module, Head | None] = WeakKeyDictionary()


def causal_of(model: PreTrainedModel) -> PreTrainedModel:
    """The causal language model itself. PEFT puts the LoRA layers into its modules, so it is the adapted one."""
    causal: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal


def head_of(model: PreTrainedModel) -> Head | None:
    """The model's head if it is understood, else None: then only the model's own forward knows its logits.

    Unsloth's forward (while training) makes no logits to compare with, so there the head is not checked.
    """
    causal = causal_of(model)
    if causal not in _checked:
        head = _assumed_head(causal)
        stock = type(causal).forward.__module__.startswith("transformers.")
        _checked[causal] = None if head is None or (stock and not _agrees(causal, head)) else head
    return _checked[causal]


def _assumed_head(causal: PreTrainedModel) -> Head | None:
    backbone, project = causal.get_decoder(), causal.get_output_embeddings()
    if backbone is causal:  # Llama 4, whose prefix is that of its vision wrapper
        backbone = getattr(causal, "model", None)
    if backbone is None or project is None:
        return None
    config = causal.config.get_text_config()
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
    if scale := getattr(config, "logit_scale", None):  # Cohere
        divisor /= float(scale)
    return Head(backbone, project, divisor, getattr(config, "final_logit_softcapping", None))


@torch.inference_mode()
def _agrees(causal: PreTrainedModel, head: Head) -> bool:
    """Whether the head's logits are the model's own on one row of ids."""
    vocabulary = causal.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(CHECKED_TOKENS, device=causal.device) * 7919 % vocabulary)[None]
    was_training = causal.training
    causal.eval()
    try:
        ours = head.logits(head.hidden(ids)).float()
    except (AttributeError, TypeError):  # a backbone with other arguments or results
        return False
    else:
        own = causal(input_ids=ids, use_cache=False).logits.float()
    finally:
        causal.train(was_training)
    # A model on several GPUs hands its logits back on the first; its head is on the last.
    own = own.to(ours.device)
    return ours.shape == own.shape and bool((ours - own).abs().max() <= TOLERANCE * own.std())
