"""TRL's trainer, set up for one recipe: every argument written out, since Unsloth and TRL change defaults."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from trl import SFTConfig, SFTTrainer

from stages.common.conversation import IGNORE
from stages.common.device import resolve_dtype
from stages.common.likelihood import conversation_nll
from stages.common.params import TrainParams
from stages.train.callbacks import Progress


def sft_config(recipe: TrainParams, max_length: int, seed: int, output_dir: str) -> SFTConfig:
    """The recipe as TRL's arguments."""
    dtype = resolve_dtype(recipe.dtype)
    return SFTConfig(
        output_dir=output_dir,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        max_steps=recipe.max_steps,
        learning_rate=recipe.peak_learning_rate,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type=recipe.lr_scheduler_type,
        optim=recipe.optim,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        max_grad_norm=recipe.max_grad_norm,
        logging_strategy="steps",
        logging_steps=recipe.logging_steps,
        logging_nan_inf_filter=False,  # the default logs 0.0 after a NaN, which would be the "best" loss
        eval_strategy="steps" if recipe.eval_steps else "no",
        eval_steps=recipe.eval_steps or None,
        save_strategy="no",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        gradient_checkpointing=recipe.gradient_checkpointing != "none",
        max_length=max_length,
        packing=False,
        padding_free=False,
        train_sampling_strategy="sequential",  # mix has shuffled; so the file's order is the training order
        dataset_kwargs={"skip_prepare_dataset": True},  # format has tokenised and labelled
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=False,
    )


class TokenWeightedTrainer(SFTTrainer):
    """SFTTrainer whose eval loss is sum(nll) / sum(supervised tokens), the one that the eval stage reports too."""

    eval_batch_tokens: int = 2048

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        rows = (eval_dataset or self.eval_dataset)[:]
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.args.bf16):
                nll = conversation_nll(self.model, rows["input_ids"], rows["labels"], self.eval_batch_tokens)
        finally:
            self.model.train(was_training)
        supervised = sum(label != IGNORE for labels in rows["labels"] for label in labels)
        metrics = {f"{metric_key_prefix}_loss": sum(nll) / supervised}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def build_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    train: Dataset,
    val: Dataset,
    callbacks: list[TrainerCallback],
    eval_batch_tokens: int,
) -> TokenWeightedTrainer:
    trainer = TokenWeightedTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=val if arguments.eval_strategy != "no" else None,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.eval_batch_tokens = eval_batch_tokens
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress())
    return trainer
