"""An adapter's weights added into the base model's, and the proof that the sum still answers as the adapter does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from abctune.core.errors import UserError
from abctune.llm.chat import prompt_ids
from abctune.llm.inference import load_for_inference
from abctune.llm.prompts import PROMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Of the logits' own spread. Rounding tiny's B to bfloat16 (8 significant bits) moved them by 0.025 of it.
TOLERANCE = 0.05
# Of the adapter's effect: 0.04 of B's was lost to bfloat16. Changes to weights that are smaller than half of the
# format's step at their size are lost altogether; float16's step is an eighth of bfloat16's.
MAX_LOST = 0.1


@dataclass(frozen=True)
class Agreement:
    """How far merging moved the logits on the fixed prompts. Root mean squares over all positions and tokens."""

    difference: float  # merged - adapter
    effect: float  # adapter - base: what merging has to carry over
    spread: float  # standard deviation of the adapter's logits over the vocabulary

    def fault(self) -> str | None:
        """What is wrong with the merged model, as a sentence, or None."""
        if not self.difference <= TOLERANCE * self.spread:  # NaN is a fault too
            return f"its logits differ by {self.difference:.3g} where their spread is {self.spread:.3g}"
        if self.difference > MAX_LOST * self.effect:
            share = self.difference / self.effect if self.effect else 1.0
            return f"rounding its weights moved the logits by {share:.0%} of what the adapter does"
        return None


def load_merged(
    adapter: Path, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, Agreement]:
    """Base and adapter as one plain model whose weights have `dtype`, on the machine's device.

    The sum is made in float32 and rounded once; one model is in memory at a time (4 bytes per parameter). Adapters
    trained over a 4-bit base are merged into the full base, on which eval scores them.

    Raises:
        UserError: base or adapter is missing or does not fit, or the merged model does not answer as the adapter does.
    """
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    model = load_for_inference(torch.float32, adapter)
    wanted = logits(model, prompts)
    with model.disable_adapter():
        effect = rms(wanted - logits(model, prompts))
    merged = model.merge_and_unload(safe_merge=True)
    # Rounded, but still computed in float32, so that no noise is added to that of the weights.
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(dtype).float()
    agreement = Agreement(rms(logits(merged, prompts) - wanted), effect, wanted.std(dim=-1).mean().item())
    if fault := agreement.fault():
        other = "" if dtype == torch.float16 else "merge to float16, or "
        raise UserError(
            f"{adapter} merged to {str(dtype).removeprefix('torch.')}: {fault}; {other}use the adapter"
        )
    return merged.to(dtype), agreement


@torch.inference_mode()
def logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """float32 logits of every position of every prompt, (positions, vocabulary), on the CPU."""
    rows = (model(input_ids=torch.tensor([ids], device=model.device)).logits[0] for ids in prompts)
    return torch.cat([row.float().cpu() for row in rows])


def rms(values: torch.Tensor) -> float:
    """Root mean square of all elements."""
    return float(values.pow(2).mean().sqrt())
