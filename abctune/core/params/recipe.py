"""The recipe of a training: optimizer, length, adapter."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from abctune.core.errors import UserError
from abctune.core.params.section import PARAMS_FILE, Count, Positive, Section, Whole

# Those of transformers that treat every number of an adapter alike, since all of them are one flat tensor: not Adafactor,
# which looks at rows and columns.
Optimizer = Literal[
    "adamw_8bit",
    "adamw_torch",
    "adamw_torch_fused",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "lion_32bit",
    "sgd",
]
Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]


class TrainParams(Section):
    """The resolved recipe of one variant. Field names are those of transformers' TrainingArguments.

    How long it trains is said by one of `max_steps` and `num_train_epochs`.
    """

    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    max_steps: Count | None = None
    num_train_epochs: Positive | None = None
    learning_rate: Positive
    learning_rate_scale: Positive
    warmup_steps: Whole
    logging_steps: Count
    eval_steps: Whole  # 0: no evaluation while training
    optim: Optimizer
    weight_decay: Annotated[float, Field(ge=0)]
    lr_scheduler_type: Scheduler
    lr_scheduler_kwargs: dict[str, float | int | str | bool] = {}  # what some schedules take in addition
    max_grad_norm: Annotated[float, Field(ge=0)]
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    adam_epsilon: Positive
    neftune_noise_alpha: Annotated[float, Field(ge=0)]  # noise on the embeddings while training; 0: none
    sample_every: Whole  # optimizer steps between live generations; 0: epoch ends and the last step only
    save_steps: Whole  # optimizer steps between checkpoints to resume from; 0: only when told to stop
    keep: Literal["train_loss", "eval_loss", "last"]
    publish: Literal["first", "lowest_eval_loss"]  # which replicate's adapter is the variant's published one
    load_in_4bit: bool
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    gradient_checkpointing: Literal["auto", "unsloth", "standard", "none"]
    packing: Literal["auto"] | bool = "auto"  # several conversations in one row without padding
    sharding: Literal["auto", "fsdp", "none"]  # the base model split over the training's processes
    _places: dict[str, str] = PrivateAttr(default_factory=dict)  # setting -> the layer that it comes from

    def __eq__(self, other: object) -> bool:
        """Whether all settings have the same values, wherever in params.yaml they come from."""
        return isinstance(other, TrainParams) and dict(self) == dict(other)

    @model_validator(mode="after")
    def _has_the_loss_it_goes_by(self) -> TrainParams:
        if needs := self._lacks_eval_loss():
            raise ValueError(needs)
        return self

    @model_validator(mode="after")
    def _one_length(self) -> TrainParams:
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError(
                "set max_steps or num_train_epochs, one of them; remove the other or set it to null"
            )
        return self

    def _lacks_eval_loss(self) -> str | None:
        """What is wrong, in words, where an adapter is to be chosen by a loss that the run never measures; or None."""
        for rule, value in (("keep: eval_loss", self.keep), ("publish: lowest_eval_loss", self.publish)):
            if value != rule.split(": ")[1]:
                continue
            if not self.eval_steps:
                return f"{rule} needs eval_steps above 0, so that there is an eval loss to go by"
            if self.max_steps is not None and self.eval_steps > self.max_steps:
                return (
                    f"{rule} needs an eval loss to go by, and eval_steps {self.eval_steps} is more than the run's "
                    f"{self.max_steps} steps; lower eval_steps"
                )
        return None

    def key(self, name: str) -> str:
        """Where in params.yaml a setting has its value, for messages: `profiles.tiny.train.optim`."""
        return f"{self._places.get(name, 'train')}.{name}"

    @property
    def steps(self) -> int:
        """Optimizer steps of the run; known only after `with_steps` where the recipe counts epochs."""
        assert self.max_steps is not None
        return self.max_steps

    @property
    def conversations_per_step(self) -> int:
        """How many conversations one optimizer step takes, over all devices."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def with_steps(self, rows: int) -> TrainParams:
        """The recipe with `num_train_epochs` over `rows` conversations as `max_steps`, as the Trainer counts them.

        The last step of an epoch takes the conversations that are left.

        Raises:
            UserError: so many steps end before the first evaluation, by which an adapter is to be chosen.
        """
        if self.num_train_epochs is None:
            return self
        steps = math.ceil(self.num_train_epochs * math.ceil(rows / self.conversations_per_step))
        resolved = self.model_copy(update={"max_steps": steps})
        if needs := resolved._lacks_eval_loss():
            raise UserError(f"{PARAMS_FILE}: {self.key('eval_steps')}: {needs}")
        return resolved

    @property
    def peak_learning_rate(self) -> float:
        """The optimizer's rate if warmup ends: learning_rate x learning_rate_scale."""
        return self.learning_rate * self.learning_rate_scale


class LoraParams(Section):
    """The adapter: names and meanings are those of PEFT's LoraConfig."""

    r: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    use_rslora: bool  # scaling lora_alpha / sqrt(r) instead of lora_alpha / r
    use_dora: bool  # magnitude and direction of the weights trained separately
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)]
