"""However a step's conversations are cut into micro-batches, its gradient is the same."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer
from trl import SFTTrainer

from abctune.core.errors import UserError
from abctune.core.params import load_params
from abctune.llm.conversation import IGNORE
from stages.train.callbacks import TerminateOnNonFinite
from stages.train.micro_batching import ALIGNMENT, MicroBatching, as_rows, bins, micro_batching_for, packed
from stages.train.model import Base
from stages.train.resume import Checkpoints
from stages.train.trainer import TokenWeightedTrainer, build_trainer, training_arguments
from tests import small

BATCH, LONGEST = 16, 90
ALL = BATCH * LONGEST
ONE_BY_ONE = MicroBatching(tokens=1, packed=False)
CUTS = {
    "16 x 1": ONE_BY_ONE,
    "4 x 4": MicroBatching(tokens=4 * LONGEST, packed=False),
    "1 x 16, padded": MicroBatching(tokens=ALL, packed=False),
    "1 x 16, packed": MicroBatching(tokens=ALL, packed=True),
    "packed in a few rows": MicroBatching(tokens=2 * LONGEST, packed=True),
}


@pytest.fixture(scope="module")
def model(small_model):
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    base.config.use_cache = False
    torch.manual_seed(0)
    return get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )


@pytest.fixture(scope="module")
def examples():
    """Conversations of 2 to 90 tokens, so that a mean of batch means would be far off."""
    rng = random.Random(0)
    found = []
    for length in [2, LONGEST, *(rng.randrange(3, LONGEST) for _ in range(BATCH - 2))]:
        ids = [rng.randrange(4, 260) for _ in range(length)]
        start = rng.randrange(1, length)
        found.append({"input_ids": ids, "labels": [IGNORE] * start + ids[start:]})
    return found


@pytest.fixture
def step(model, examples, tmp_path):
    """Make one step's loss and gradients with a cut: step(cut) -> (loss, gradients by parameter, trainer)."""

    def run(cut):
        recipe = load_params().train_of("B", "tiny")
        recipe = recipe.model_copy(update={"per_device_train_batch_size": BATCH})
        rows = Dataset.from_list(examples)
        arguments = training_arguments(recipe, seed=0, output_dir=str(tmp_path))
        trainer = build_trainer(
            model,
            small.chatml_tokenizer(),
            arguments,
            rows,
            rows,
            [],
            400,
            micro_batching=cut,
        )
        trainer.create_optimizer()
        model.zero_grad()
        batches, supervised = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, "cpu")
        loss = trainer.training_step(model, batches[0], supervised)
        return loss.item(), gradients(model), trainer

    return run


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def same(found, expected):
    """Equal to 1e-5 of each parameter's gradient."""
    assert found.keys() == expected.keys()
    return all((found[name] - expected[name]).norm() <= 1e-5 * expected[name].norm() for name in found)


@pytest.fixture(scope="module")
def definition(model, examples):
    """Loss and gradients of sum(nll) / supervised tokens by the definition: one conversation at a time, all logits."""
    model.zero_grad()
    total = torch.tensor(0.0)
    for example in examples:
        log_p = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        for place, token in enumerate(example["labels"]):
            if token != IGNORE:
                total = total - log_p[place - 1, token]
    loss = total / sum(token != IGNORE for example in examples for token in example["labels"])
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("name", CUTS)
def test_every_cut_gives_the_gradient_of_the_definition(name, step, definition):
    loss, found, trainer = step(CUTS[name])
    assert loss == pytest.approx(definition[0], rel=1e-5)
    assert same(found, definition[1])
    assert trainer.micro_batching == CUTS[name]


def test_every_module_trains_at_a_step_also_after_an_evaluation(step, model, examples, monkeypatch):
    """In eval mode nothing is checkpointed, and memory runs out."""
    seen = []
    sound = TokenWeightedTrainer.compute_loss

    def watched(trainer, model, *arguments, **keywords):
        seen.append(all(module.training for module in model.modules()))
        return sound(trainer, model, *arguments, **keywords)

    monkeypatch.setattr(TokenWeightedTrainer, "compute_loss", watched)
    model.get_base_model().eval()  # as from_pretrained leaves it, below an outermost module that trains
    _, _, trainer = step(CUTS["1 x 16, padded"])
    trainer.evaluate()
    trainer.training_step(model, as_rows(examples), torch.tensor(100))
    assert seen == [True, True]


def test_the_cuts_are_what_their_names_say(examples):
    rows = as_rows(examples)
    shapes = {
        name: [tuple(b["input_ids"].shape) for b in cut.micro_batches(rows)] for name, cut in CUTS.items()
    }
    total = sum(len(example["input_ids"]) for example in examples)
    assert len(shapes["16 x 1"]) == 16 and {height for height, _ in shapes["16 x 1"]} == {1}
    assert sum(height for height, _ in shapes["4 x 4"]) == 16 and len(shapes["4 x 4"]) < 5
    assert shapes["1 x 16, padded"] == [(16, LONGEST)]
    assert shapes["1 x 16, packed"] == [(1, total + -total % ALIGNMENT)]
    few = [width for _, width in shapes["packed in a few rows"]]
    assert len(few) > 1 and max(few) < 2 * LONGEST + ALIGNMENT
    assert total <= sum(few) < total + len(few) * ALIGNMENT and not any(width % ALIGNMENT for width in few)


def test_a_conversation_in_a_packed_row_does_not_see_its_neighbour(model, examples):
    rows = as_rows(examples[1:4])

    def nll_of_second():
        batch = packed(rows)
        batch.pop("labels")
        with torch.no_grad():
            log_p = model(**batch).logits[0].log_softmax(-1)
        start, end = len(rows[0]["input_ids"]), sum(len(row["input_ids"]) for row in rows[:2])
        return log_p[start : end - 1].gather(1, batch["input_ids"][0, start + 1 : end, None])

    before = nll_of_second()
    rows[0]["input_ids"] = (rows[0]["input_ids"] + 7) % 250 + 4
    assert torch.equal(nll_of_second(), before)


def test_the_first_token_of_a_packed_conversation_is_not_predicted_from_the_one_before():
    rows = as_rows([{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7, 8], "labels": [7, 8]}])
    assert packed(rows)["labels"][:, :4].tolist() == [[IGNORE, 6, IGNORE, 8]]
    assert (packed(rows)["labels"][:, 4:] == IGNORE).all()


def test_bins_are_few_full_and_alike():
    assert bins([5, 4, 3, 2], tokens=7) == [[0, 3], [1, 2]]
    assert bins([5, 4, 3, 2], tokens=100) == [[0, 1, 2, 3]]
    assert bins([9, 1, 1], tokens=4) == [[0], [1, 2]]  # longer than a bin: on its own


class OutOfMemory:
    """Raises the GPU's error at the calls with these numbers."""

    def __init__(self, *calls):
        self.calls, self.count, self.sizes = calls, 0, []
        self.compute_loss = Trainer.compute_loss

    def instead_of_it(self):
        def compute_loss(trainer, model, batch, **kwargs):
            self.count += 1
            self.sizes.append(batch["input_ids"].numel())
            if self.count in self.calls:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return self.compute_loss(trainer, model, batch, **kwargs)

        return compute_loss


@pytest.mark.parametrize("pack", [False, True])
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    pack, step, examples, definition, monkeypatch, capsys
):
    # The second micro-batch fails, and so does the second of the next attempt: what the first ones left must go.
    failing = OutOfMemory(2, 4)
    monkeypatch.setattr(TokenWeightedTrainer, "compute_loss", failing.instead_of_it())
    loss, found, trainer = step(MicroBatching(tokens=4 * LONGEST, packed=pack))
    assert loss == pytest.approx(definition[0], rel=1e-5)
    assert same(found, definition[1])
    assert trainer.micro_batching.back_offs == 2 and trainer.micro_batching.tokens <= 4 * LONGEST // 3
    assert max(failing.sizes[4:]) < trainer.micro_batching.tokens + ALIGNMENT
    printed = [line for line in capsys.readouterr().out.splitlines() if "out of GPU memory" in line]
    assert len(printed) == 2 and "at step 1" in printed[0] and "16 conversations" in printed[0]


def test_out_of_memory_at_one_conversation_says_what_to_set(step, monkeypatch):
    failing = OutOfMemory(*range(100))
    monkeypatch.setattr(TokenWeightedTrainer, "compute_loss", failing.instead_of_it())
    with pytest.raises(UserError, match=r"micro-batch 1 \(90 tokens\).*max_length"):
        step(MicroBatching(tokens=ALL, packed=False))


@pytest.fixture
def float16_step(step, model, monkeypatch):
    """A step whose loss is scaled as float16's is; scaled gradients over `limit` are infinite, as float16 has no such number."""

    def run(limit):
        def compute_loss(trainer, model, batch, **kwargs):
            if trainer.accelerator.scaler is None:
                trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
            loss = Trainer.compute_loss(trainer, model, batch, **kwargs)
            loss.register_hook(lambda gradient: gradient.where(gradient <= limit, torch.inf))
            return loss

        monkeypatch.setattr(TokenWeightedTrainer, "compute_loss", compute_loss)
        loss, found, trainer = step(CUTS["4 x 4"])
        scale = trainer.accelerator.scaler.get_scale()
        return loss, {name: gradient / scale for name, gradient in found.items()}, trainer

    return run


def test_a_step_that_overflows_in_float16_is_taken_again_at_a_lower_scale(float16_step, definition, capsys):
    loss, found, trainer = float16_step(limit=2**14)
    assert loss == pytest.approx(definition[0], rel=1e-5)
    assert same(found, definition[1])
    assert trainer.repeated_steps == 2, "2^16, the scaler's first, and 2^15"
    assert trainer.accelerator.scaler.get_scale() == 2**14
    assert capsys.readouterr().out.count("overflowed at step 1") == 2


def test_a_gradient_that_is_infinite_at_any_scale_ends_the_run(float16_step, tmp_path):
    trainer = float16_step(limit=0.5)[2]
    trainer._tr_loss = torch.tensor(1.0)  # what transformers' loop adds up
    with pytest.raises(UserError, match="gradient is infinite or nan at step 1"):
        TerminateOnNonFinite(trainer, tmp_path / "last").on_pre_optimizer_step(
            trainer.args, trainer.state, None, trainer.model
        )


def test_repeated_steps_outlive_a_crash():
    cut = MicroBatching(tokens=8, packed=False)
    before = SimpleNamespace(micro_batching=cut, repeated_steps=2, _tr_loss=0.5, _globalstep_last_logged=3)
    running = SimpleNamespace(seconds=1.0, resumed_at=[], _trainer=before, _callbacks={})
    saved = json.loads(json.dumps(Checkpoints._state(running, SimpleNamespace(global_step=4))))
    after = SimpleNamespace(add_callback=lambda _: None)
    Checkpoints.attach(SimpleNamespace(start="step-4", _saved=saved), after, {})
    assert (after.repeated_steps, after.micro_batching) == (2, cut)


def test_the_probe_finds_the_cut_before_the_first_step(step, monkeypatch, capsys):
    _, _, trainer = step(MicroBatching(tokens=ALL, packed=False))

    def compute_loss(trainer, model, batch, **kwargs):
        tried.append(tuple(batch["input_ids"].shape))
        if batch["input_ids"].numel() > 5 * LONGEST:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(trainer, model, batch, **kwargs)

    tried, original = [], Trainer.compute_loss
    monkeypatch.setattr(TokenWeightedTrainer, "compute_loss", compute_loss)
    weights, draw = trainer.flat.weight.detach().clone(), torch.random.get_rng_state()
    trainer.probe(max_length=LONGEST)
    assert tried == [(16, LONGEST), (8, LONGEST), (4, LONGEST)]  # one pass each, not a whole step
    assert (trainer.micro_batching.tokens, trainer.micro_batching.back_offs) == (4 * LONGEST, 2)
    assert torch.equal(trainer.flat.weight, weights) and not any(gradients_left(trainer.model))
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert capsys.readouterr().out.count("out of GPU memory before the first step") == 2


def gradients_left(model):
    return [weight.grad is not None for weight in model.parameters()]


def test_an_adapter_on_a_4_bit_base_stays_float32_and_a_step_at_2e_5_moves_it(model, examples, tmp_path):
    # SFTTrainer casts it to bfloat16, in which a step of 2e-5 on a weight of 0.05 is rounded away.
    model.is_loaded_in_4bit = True
    recipe = load_params().train_of("B", "tiny")
    recipe = recipe.model_copy(update={"learning_rate_scale": 1.0, "warmup_steps": 0, "eval_steps": 0})
    rows = Dataset.from_list(examples)
    trainer = build_trainer(
        model,
        small.chatml_tokenizer(),
        training_arguments(recipe, seed=0, output_dir=str(tmp_path)),
        rows,
        rows,
        callbacks=[],
        eval_batch_tokens=ALL,
        micro_batching=MicroBatching(ALL, packed=False),
    )
    assert isinstance(trainer, SFTTrainer)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    before = [parameter.detach().clone() for parameter in trained]
    trainer.args.max_steps = 1
    trainer.train()
    moved = [not torch.equal(old, new) for old, new in zip(before, trained, strict=True)]
    assert recipe.peak_learning_rate == pytest.approx(2e-5) and any(moved)


def test_packing_is_refused_where_it_would_be_slow_or_wrong(model):
    recipe = load_params().train_of("B", "tiny").model_copy(update={"packing": True})
    with pytest.raises(UserError, match=r"train\.packing: true does not work here"):
        micro_batching_for(model, recipe, LONGEST)
    assert not micro_batching_for(model, recipe.model_copy(update={"packing": False}), LONGEST).packed


def test_packing_is_refused_before_the_base_is_loaded(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"}')  # no weights to load
    recipe = load_params().train_of("B", "tiny").model_copy(update={"packing": True})
    with pytest.raises(UserError, match=r"train\.packing: true does not work here"):
        Base(recipe, LONGEST, tmp_path)
