"""TRL's SFTTrainer, set up for one recipe: every argument written out, since TRL and Unsloth change defaults.

Templates, labels and micro-batches are made by earlier stages and by `micro_batching`, so SFTTrainer's own preparation
is skipped (`skip_prepare_dataset`). Three things that it does are undone, each where it is done: it casts an adapter on
a 4-bit base to bfloat16, in which a step at the recipe's learning rate is mostly rounded away; it replaces the model's
forward, by which Unsloth's packed rows are lost; and it writes a model card into every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerControl
from transformers.trainer_callback import ProgressCallback
from trl import SFTConfig, SFTTrainer

from abctune.core.errors import UserError
from abctune.core.params import TrainParams
from abctune.llm.conversation import IGNORE
from abctune.llm.device import resolve_dtype
from abctune.llm.likelihood import conversation_nll
from stages.train.callbacks import FinalStep, Progress
from stages.train.flat_parameter import FlatParameter
from stages.train.micro_batching import (
    MicroBatching,
    Row,
    as_rows,
    longest_step,
    n_supervised,
    n_tokens,
    share,
)
from stages.train.processes import TIMEOUT

LEAST_SCALE = (
    1.0  # of float16's loss: a gradient that overflows even so does not overflow because of its scale
)

# AdamW by bitsandbytes, which does not take split parameters; torch's makes the same steps from larger state.
OF_BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")


def training_arguments(
    recipe: TrainParams, seed: int, output_dir: str, sharding: dict[str, Any] | None = None
) -> SFTConfig:
    """The recipe as the Trainer's arguments.

    Args:
        sharding: what a model that is split over the processes needs in addition. Its AdamW is torch's: split, its
            state is small.

    Raises:
        UserError: the optimizer takes no split parameters, and torch has none like it.
    """
    dtype = resolve_dtype(recipe.dtype)
    if sharding and recipe.optim.startswith("lion"):
        raise UserError(
            f"params.yaml: {recipe.key('optim')}: {recipe.optim} does not take a model that is split over GPUs; set adamw_torch"
        )
    return SFTConfig(
        output_dir=output_dir,
        # What the DataLoader hands over is a whole step's conversations; training_step cuts them.
        per_device_train_batch_size=recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps,
        gradient_accumulation_steps=1,
        max_steps=recipe.steps,
        learning_rate=recipe.peak_learning_rate,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type=recipe.lr_scheduler_type,
        lr_scheduler_kwargs=dict(recipe.lr_scheduler_kwargs) or None,
        optim="adamw_torch" if sharding and recipe.optim in OF_BITSANDBYTES else recipe.optim,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        max_grad_norm=recipe.max_grad_norm,
        neftune_noise_alpha=recipe.neftune_noise_alpha or None,
        logging_strategy="steps",
        logging_steps=recipe.logging_steps,
        logging_nan_inf_filter=False,  # the default logs 0.0 after a NaN, which would be the "best" loss
        eval_strategy="steps" if recipe.eval_steps else "no",
        eval_steps=recipe.eval_steps or None,
        save_strategy="no",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        train_sampling_strategy="sequential",  # mix has shuffled; so the file's order is the training order
        include_num_input_tokens_seen="no",  # wants tensors; get_batch_samples counts
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # rows are token ids and labels already
        max_length=None,  # format has cut them
        packing=False,  # micro_batching packs where the device does it well
        gradient_checkpointing=False,  # build_trainer sets what was decided when the model was loaded
        dataloader_pin_memory=False,  # a batch is a list of rows, of which there are no tensors yet
        label_names=["labels"],
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),  # or accelerate joins no processes without a GPU
        average_tokens_across_devices=False,  # get_batch_samples counts those of all processes
        ddp_timeout=int(TIMEOUT.total_seconds()),
        report_to="none",
        disable_tqdm=False,
        **(sharding or {}),
    )


class TokenWeightedTrainer(SFTTrainer):
    """Trainer whose losses are sum(nll) / sum(supervised tokens), however a batch is cut.

    A batch of its DataLoader is the whole of a step's conversations, a list of rows; `micro_batching` says how they go through
    the model. The eval loss is the one that the eval stage reports too.
    """

    micro_batching: MicroBatching
    eval_batch_tokens: int
    max_length: int
    flat: FlatParameter
    # How often a step was taken again in float16, since a scaled gradient overflowed. Once or twice at the beginning is
    # usual: the scale begins high, where small gradients keep most of their bits.
    repeated_steps: int = 0

    def __init__(self, model: Any, **arguments: Any) -> None:
        causal = model.get_base_model()
        forward = causal.__dict__.get("forward")
        super().__init__(model, **arguments)
        causal.__dict__.pop("forward", None)  # SFTTrainer's uses a fused head, which is not used here
        if forward is not None:
            causal.forward = forward
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = (
                    parameter.data.float()
                )  # SFTTrainer casts an adapter on a 4-bit base to bfloat16

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        """The model's own loss, as transformers' Trainer takes it: sum(nll) / num_items_in_batch."""
        return Trainer.compute_loss(self, model, inputs, *arguments, **named)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # without SFTTrainer's model card

    def _save_rng_state(self, output_dir: str) -> None:
        """Every process's random state, all of them written by the main one: the others' output_dir is their own."""
        super()._save_rng_state(output_dir)
        files = [(file.name, file.read_bytes()) for file in Path(output_dir).glob("rng_state*.pth")]
        for name, content in gather_object(files):
            if self.args.should_save:
                Path(output_dir, name).write_bytes(content)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load via the CPU: transformers loads to this process's device, which has no name of its own among several CPU processes."""
        if checkpoint is None:
            return
        state, schedule = (
            torch.load(Path(checkpoint, name), map_location="cpu", weights_only=True)
            for name in ("optimizer.pt", "scheduler.pt")
        )
        self._restore_optimizer(state)
        self.lr_scheduler.load_state_dict(schedule)

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of all of a step's conversations, the same ones in every process (accelerate would deal out whole ones)."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
        )
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Row]], num_batches: int, device: torch.device
    ) -> tuple[list[list[Row]], torch.Tensor]:
        """The step's conversations, the same in every process, and their supervised tokens to divide by."""
        samples = [rows for _, rows in zip(range(num_batches), epoch_iterator, strict=False)]
        self.state.num_input_tokens_seen += sum(map(n_tokens, samples))
        return samples, torch.tensor(sum(map(n_supervised, samples)), device=device)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """An optimizer of one flat tensor that holds all trained parameters."""
        self.flat = FlatParameter((model or self.model).parameters())
        return super().create_optimizer(self.flat)

    def _prepare_for_training(self, *arguments: Any, **named: Any) -> Any:
        prepared = super()._prepare_for_training(*arguments, **named)
        self.flat.tie()  # DDP gives the parameters it wraps memory of their own
        return prepared

    def probe(self, max_length: int) -> None:
        """Try a micro-batch of the longest conversations on the GPU; if it does not fit, make micro-batches smaller.

        Raises:
            UserError: not even one conversation fits.
        """
        conversations = self.args.per_device_train_batch_size // self.accelerator.num_processes
        rows = longest_step(max(1, conversations), max_length)
        supervised = torch.tensor(n_supervised(rows), device=self.args.device)
        with torch.random.fork_rng():
            self._fitting(self.model, rows, supervised, when="before the first step", micro_batches=1)
        self.model.zero_grad()

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of the step's loss, in float16 from a scaled loss; where one overflows, at half the scale.

        Here is the outer of two loops, which repeats a step whose scaled gradients overflow: transformers' loop would
        skip it, so that its rows would not be learned and the learning rate's schedule would lag behind by one step. The
        inner loop (`_fitting`) repeats a process's forward and backward passes with smaller micro-batches where memory
        runs out. Between the two, `_step_gradients` adds up all processes' gradients, once, after the last micro-batch.

        Raises:
            UserError: not even one conversation fits the GPU.
        """
        loss = self._step_gradients(model, inputs, num_items_in_batch)
        while self._scale_was_halved(loss):
            model.zero_grad()
            loss = self._step_gradients(model, inputs, num_items_in_batch)
        return loss

    def _scale_was_halved(self, loss: torch.Tensor) -> bool:
        """Whether a scaled gradient overflowed, so that the step is to be taken again."""
        scaler = self.accelerator.scaler
        if scaler is None or not loss.isfinite() or self.gradients_are_finite():
            return False
        if scaler.get_scale() <= LEAST_SCALE:
            return False  # TerminateOnNonFinite ends the run
        scaler.update(scaler.get_scale() / 2)
        self.repeated_steps += 1
        self.accelerator.print(
            f"\nfloat16: a scaled gradient overflowed at step {self.state.global_step + 1}, which is repeated with its loss "
            f"times {scaler.get_scale():,.0f}",
            flush=True,
        )
        return True

    def _step_gradients(self, model: Any, inputs: list[Row], num_items_in_batch: Any) -> torch.Tensor:
        """The step's loss, its gradients left in the parameters; where micro-batches do not fit, smaller ones from here on.

        Raises:
            UserError: not even one conversation fits.
        """
        world = self.accelerator.num_processes
        rows = share(inputs, [len(row["input_ids"]) for row in inputs], self.accelerator.process_index, world)
        # Apart from each other: processes have different numbers of micro-batches, and one repeats them where its
        # memory runs out. DDP's own sum would come with a fixed backward pass.
        with self.accelerator.no_sync(model):
            loss = self._fitting(
                model, rows, num_items_in_batch, when=f"at step {self.state.global_step + 1}"
            )
        gradients = self.flat.gather_gradients()
        if world == 1:
            return loss
        gradients.copy_(self.accelerator.reduce(gradients))
        return self.accelerator.reduce(loss)

    def _fitting(
        self, model: Any, rows: list[Row], supervised: Any, when: str, micro_batches: int | None = None
    ) -> torch.Tensor:
        """_forward_backward, with `self.micro_batching` made smaller until its micro-batches fit."""
        while (loss := self._forward_backward(model, rows, supervised, micro_batches)) is None:
            model.zero_grad()
            torch.cuda.empty_cache()
            self.micro_batching = self.micro_batching.smaller(rows)
            print(
                f"\nout of GPU memory {when}: once more with micro-batches of at most {self.micro_batching.tokens:,} tokens; "
                f"the {self.args.per_device_train_batch_size} conversations of a step stay together",
                flush=True,
            )
        return loss

    def _forward_backward(
        self, model: Any, rows: list[Row], supervised: Any, micro_batches: int | None
    ) -> torch.Tensor | None:
        """The step's loss, its gradients left in the parameters; None if the GPU's memory ran out.

        None instead of the exception, whose traceback would keep the activations in memory.
        """
        losses = []
        try:
            for batch in self.micro_batching.micro_batches(rows)[:micro_batches]:
                batch = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, batch, num_items_in_batch=supervised)
                self.accelerator.backward(loss)
                losses.append(loss.detach())
        except torch.cuda.OutOfMemoryError:
            return None
        return torch.stack(losses).sum()

    def eval_nll(self, dataset: Dataset) -> torch.Tensor:
        """-log p of all supervised tokens of a dataset, of which each process scores a part."""
        rows = dataset[self.accelerator.process_index :: self.accelerator.num_processes]
        nll = conversation_nll(self.model, rows["input_ids"], rows["labels"], self.eval_batch_tokens)
        total: torch.Tensor = self.accelerator.reduce(
            torch.tensor(sum(nll), dtype=torch.float64, device=self.model.device)
        )
        return total

    def gradients_are_finite(self) -> bool:
        """Whether every gradient of the step is finite."""
        gradients = self.flat.weight.grad
        return gradients is not None and bool(gradients.isfinite().all())

    def floating_point_ops(self, inputs: list[Row]) -> float:
        """Not estimated."""
        return 0.0  # transformers' estimate wants tensors, and nothing here reads it

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The eval loss, sum(nll) / sum(supervised tokens), of all processes' rows."""
        dataset = eval_dataset or self.eval_dataset
        was_training = self.model.training
        self.model.eval()
        try:
            half = torch.float16 if self.args.fp16 else torch.bfloat16
            with torch.autocast(self.model.device.type, dtype=half, enabled=self.args.bf16 or self.args.fp16):
                total = float(self.eval_nll(dataset))
        finally:
            self.model.train(was_training)
        count = sum(label != IGNORE for labels in dataset["labels"] for label in labels)
        metrics = {f"{metric_key_prefix}_loss": total / count}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


class Probe(TrainerCallback):
    """One pass at the estimated limit, so that an out-of-memory error comes before step 1, not at step 50."""

    def __init__(self, trainer: TokenWeightedTrainer, max_length: int) -> None:
        self._trainer = trainer
        self._max_length = max_length

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Probe the GPU's memory, then reset what was measured."""
        if torch.cuda.is_available():
            self._trainer.probe(self._max_length)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # report the training's own peak, without the probe


def build_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    train: Dataset,
    val: Dataset,
    callbacks: list[TrainerCallback],
    eval_batch_tokens: int,
    micro_batching: MicroBatching,
    kind: type[TokenWeightedTrainer] = TokenWeightedTrainer,
    label: str = "",
) -> TokenWeightedTrainer:
    """The trainer for this run, whole base or sharded, with its callbacks; `label` stands before its progress bar."""
    arguments.gradient_checkpointing = model.is_gradient_checkpointing  # decided when the model was loaded
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=val if arguments.eval_strategy != "no" else None,
        processing_class=tokenizer,
        data_collator=as_rows,
        callbacks=callbacks,
    )
    # Once, since telling 1,500 modules at each step takes milliseconds: whoever changes the mode changes it back.
    # from_pretrained leaves all below the outermost in eval mode, in which nothing is checkpointed.
    model.train()
    trainer.micro_batching = micro_batching
    trainer.eval_batch_tokens = eval_batch_tokens
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(FinalStep())
    if trainer.accelerator.is_main_process:
        trainer.add_callback(Progress(label))
    return trainer
