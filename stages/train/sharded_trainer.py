"""The trainer of a model that FSDP2 splits over the processes, through accelerate.

Each process computes its share of a step like any other's, but a layer's weights are gathered from all of them when it is
used. So all processes take the same number of micro-batches; and where memory runs out, the step cannot be repeated: the
others wait in the middle of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer

from abctune.core.errors import UserError
from abctune.llm.conversation import IGNORE
from abctune.llm.device import free_bytes
from stages.train.adapter_files import (
    load_adapter,
    load_optimizer_state,
    optimizer_state,
    save_adapter,
    trained,
)
from stages.train.memory import sharded_bytes_per_token, sharded_reserve, tokens_that_fit
from stages.train.micro_batching import MicroBatching, Row, as_rows, longest_step, share
from stages.train.trainer import TokenWeightedTrainer


class ShardedTrainer(TokenWeightedTrainer):
    """TokenWeightedTrainer for a model whose parameters are split over the processes."""

    is_fsdp_enabled: bool

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's, then what sharding needs of the accelerator."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if (
            not self.is_fsdp_enabled
        ):  # accelerate shards on GPUs alone; without one, only tests and trials come here
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True
        if self.args.bf16:  # gradients are summed in float32
            # A 4-bit base is gathered as it is stored: a cast to bfloat16 would destroy it. autocast casts the adapter.
            packed = getattr(self.model, "is_loaded_in_4bit", False)
            state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=None if packed else torch.bfloat16, reduce_dtype=torch.float32
            )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """An optimizer of the parameters themselves, which FSDP2 exchanges."""
        return Trainer.create_optimizer(self, model)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        prepared = Trainer._prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint)
        if torch.cuda.is_available() and not resume_from_checkpoint:
            self.micro_batching = self._cut_that_fits()
        return prepared

    def _cut_that_fits(self) -> MicroBatching:
        """As large as the process with the least memory can take it.

        Half of what the formula allows, since no step is repeated here.
        """
        torch.cuda.empty_cache()
        config = self.model.config.get_text_config()
        free = torch.tensor(free_bytes() - sharded_reserve(config), device=self.args.device)
        least = int(self.accelerator.gather(free[None]).min())
        checkpointing = self.accelerator.state.fsdp_plugin.activation_checkpointing
        tokens = tokens_that_fit(least, sharded_bytes_per_token(config, checkpointing), working=0) // 2
        return MicroBatching(max(tokens, self.max_length), packed=False)

    def probe(self, max_length: int) -> None:
        """See whether a micro-batch of the longest conversations fits every GPU.

        Raises:
            UserError: it does not.
        """
        rows = longest_step(self.accelerator.num_processes, max_length)
        with torch.random.fork_rng():
            self._step_gradients(self.model_wrapped, rows, torch.tensor(len(rows) * max_length))
        self.model.zero_grad()

    def _step_gradients(self, model: Any, inputs: list[Row], num_items_in_batch: Any) -> torch.Tensor:
        """Gradients of the step's loss; every process takes as many micro-batches as any other."""
        batches, losses = self._even_micro_batches(inputs, self.micro_batching), []
        for number, batch in enumerate(batches, 1):
            # The gradients are summed once, after the last one.
            with (
                explaining_memory(batch, self.accelerator.num_processes),
                nullcontext() if number == len(batches) else self.accelerator.no_sync(model),
            ):
                loss = self._loss(model, batch, num_items_in_batch)
                # FSDP2 takes the mean over processes, and the loss is their sum.
                self.accelerator.backward(loss * self.accelerator.num_processes)
                losses.append(loss.detach())
        total: torch.Tensor = self.accelerator.reduce(torch.stack(losses).sum())
        return total

    def _loss(self, model: Any, batch: dict[str, torch.Tensor], items: Any) -> torch.Tensor:
        with self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(
                model, self._prepare_inputs(batch), num_items_in_batch=items
            )
        return loss

    def _even_micro_batches(self, rows: list[Row], cut: MicroBatching) -> list[dict[str, torch.Tensor]]:
        """This process's micro-batches and, where another one has more, copies of the last one without a loss."""
        lengths = [len(row["input_ids"]) for row in rows]
        world = self.accelerator.num_processes
        of_all = [cut.micro_batches(share(rows, lengths, rank, world)) for rank in range(world)]
        mine = of_all[self.accelerator.process_index]
        empty = (mine or max(of_all, key=len))[-1]
        empty = {**empty, "labels": torch.full_like(empty["labels"], IGNORE)}
        return mine + [empty] * (max(map(len, of_all)) - len(mine))

    def gradients_are_finite(self) -> bool:
        """Whether every process's part of every gradient is finite."""
        bad = [~weight.grad.to_local().isfinite().all() for weight in trained(self.model).values()]
        return not bool(self.accelerator.reduce(torch.stack(bad).sum()))

    @torch.no_grad()
    def eval_nll(self, dataset: Dataset) -> torch.Tensor:
        """Sum of -log p over the supervised tokens of all rows, in nats."""
        rows = as_rows(dataset)
        cut = MicroBatching(
            min(self.eval_batch_tokens, max(self.micro_batching.tokens, self.max_length)), packed=False
        )
        parts = [self._loss(self.model, batch, 1) for batch in self._even_micro_batches(rows, cut)]
        total: torch.Tensor = self.accelerator.reduce(torch.stack(parts).double().sum())
        return total

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter, gathered from all processes, once."""
        save_adapter(self.model, Path(output_dir or self.args.output_dir), self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir, "optimizer.pt"))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapter(model or self.model, Path(resume_from_checkpoint))

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        load_optimizer_state(self.optimizer, state)


@contextmanager
def explaining_memory(batch: dict[str, torch.Tensor], processes: int) -> Iterator[None]:
    """Say what helps where a micro-batch of a sharded model does not fit a GPU."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"out of GPU memory in a micro-batch of {batch['input_ids'].numel():,} tokens of a model split over "
            f"{processes} processes: start more processes, or in params.yaml's "
            "profiles.<profile> set train.load_in_4bit: true or a smaller data.max_length"
        ) from None
