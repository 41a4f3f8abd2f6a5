"""What each variant saw, what two variants differ in, and which control would show the cause of a difference."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from abctune.core.params import Params
from abctune.study.inputs import Study, Trained
from abctune.study.rendering import yaml_value
from abctune.study.wording import listed

Facts = dict[str, Any]

# What a variant was trained with, which no setting of a variant decides.
MACHINE = ("software", "hardware")
# What a difference can be due to, and the resolved arguments that make it up. "data" and "batch" are computed.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "learning rate": ("learning_rate",),
    "schedule": ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    "batch": ("per_device_train_batch_size", "gradient_accumulation_steps"),
    "steps": ("max_steps",),
    "precision": ("load_in_4bit", "dtype"),
    "embedding noise": ("neftune_noise_alpha",),
    "optimizer": ("optim", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
}


@dataclass(frozen=True)
class Control:
    """How to isolate one cause: an existing pair of variants, or a variant to add."""

    cause: str
    pair: tuple[str, str] | None  # this pair differs in this cause only, by the same change
    name: str | None = None  # of the variant to add
    command: str | None = None  # None with no pair: no variant's params can set it


@dataclass(frozen=True)
class Confound:
    """What `model` and `reference` differ in: cause -> (model's facts, reference's facts)."""

    model: str
    reference: str
    differs: dict[str, tuple[Facts, Facts]]
    controls: list[Control]
    kept: tuple[int, int] = (0, 0)  # the step of each one's published adapter

    @property
    def sentence(self) -> str:
        """What differs in addition to what was meant to, as one sentence."""
        return f"{self._causes()} {self._kept()}".rstrip()

    def _kept(self) -> str:
        """The step whose adapter was kept. It follows from recipe and data, but a difference may come from it."""
        ours, theirs = self.kept
        if ours == theirs:
            return ""
        return f"Their published adapters are those of step {ours} and step {theirs}."

    def _causes(self) -> str:
        causes = list(self.differs)
        if not causes:
            return "They differ in nothing that is recorded: a difference would be chance."
        if len(causes) == 1:
            return f"They differ in {causes[0]} only, so that is what a difference is due to."
        return (
            f"They differ in {listed(causes)}: the cause of a difference is not identified. {self._remedy()}"
        )

    def _remedy(self) -> str:
        """How to find the cause. Where the machines differ, every control that is trained today would differ in them too."""
        if machine := [cause for cause in self.differs if cause in MACHINE]:
            rest = [cause for cause in self.differs if cause not in MACHINE]
            left = f"they would differ in {listed(rest)} only" if rest else "nothing would differ"
            return f"Trained again with the same {listed(machine)}, {left}."
        there = [
            f"{control.cause} ({' and '.join(control.pair)})" for control in self.controls if control.pair
        ]
        to_add = [control.cause for control in self.controls if not control.pair]
        parts = [f"Compared alone in this study: {listed(there)}."] if there else []
        if to_add:
            parts.append(
                f"{self.reference} with {self.model}'s {listed(to_add, 'or')} alone would identify {'it' if len(to_add) == 1 else 'one each'}."
            )
        return " ".join(parts)


def recipe(trained: Trained) -> dict[str, Facts]:
    """The resolved settings that could make a difference, by cause. The training seed is not among them."""
    record = trained.record
    settings = dict(record.arguments) | {"load_in_4bit": record.load_in_4bit, "dtype": record.dtype}
    facts = {
        cause: {key: settings[key] for key in keys if key in settings} for cause, keys in ARGUMENTS.items()
    }
    facts["batch"] = {"conversations per step": record.conversations_per_step}
    base = record.base_model
    return {
        "data": {
            **{source: count.drawn for source, count in trained.mixed.sources.items()},
            "max_length": record.max_length,
        },
        **facts,
        "adapter": dict(record.lora),
        "adapter choice": {"kept by": record.published_replicate.kept.by},
        "seed": {"seed": record.arguments.get("seed")},
        "base model": {"name": base.name, "pin": base.pin},
        # Without abctune's own version: DVC trains again where the code that trains has changed.
        "software": {
            **{name: version for name, version in record.versions.items() if name != "abctune"},
            "kernels": record.kernels,
        },
        "hardware": {**record.hardware, "processes": record.processes},
    }


def confounds_of(study: Study) -> list[Confound]:
    """For every pair of variants (later against earlier), what they differ in and the controls."""
    recipes = {name: recipe(trained) for name, trained in study.trained.items()}
    names = list(recipes)
    pairs = [(later, earlier) for i, earlier in enumerate(names) for later in names[i + 1 :]]
    differs = {(a, b): differences(recipes[a], recipes[b]) for a, b in pairs}
    kept = {name: trained.record.published_replicate.kept.step for name, trained in study.trained.items()}
    return [
        Confound(a, b, found, controls_of((a, b), differs, study.params), (kept[a], kept[b]))
        for (a, b), found in differs.items()
    ]


def differences(a: dict[str, Facts], b: dict[str, Facts]) -> dict[str, tuple[Facts, Facts]]:
    """The causes that differ, each with the facts that do."""
    found = {}
    for cause in a:
        keys = [key for key in {**a[cause], **b[cause]} if a[cause].get(key) != b[cause].get(key)]
        if keys:
            found[cause] = (
                {key: a[cause].get(key) for key in keys},
                {key: b[cause].get(key) for key in keys},
            )
    return found


Pair = tuple[str, str]


def controls_of(
    pair: Pair, differs: dict[Pair, dict[str, tuple[Facts, Facts]]], params: Params
) -> list[Control]:
    """One control per cause, where there is more than one cause."""
    causes = differs[pair]
    if len(causes) < 2:
        return []
    controls = []
    for cause, change in causes.items():
        same_change = [
            other
            for other, found in differs.items()
            if list(found) == [cause] and found[cause] in (change, change[::-1])
        ]
        name, command = (None, None) if same_change else control_command(*pair, cause, params)
        controls.append(Control(cause, same_change[0] if same_change else None, name, command))
    return controls


def control_command(model: str, reference: str, cause: str, params: Params) -> tuple[str | None, str | None]:
    """Name and `dvc exp run` line of a variant: the reference's, with the model's settings for one cause."""
    mix, train = dict(params.variants[reference].mix), dict(params.variants[reference].train)
    lora = dict(params.variants[reference].lora)
    if cause == "data":
        mix = dict(params.variants[model].mix)
    elif cause in ARGUMENTS:
        theirs = params.train | params.variants[model].train
        train |= {
            key: theirs[key] for key in ARGUMENTS[cause] if theirs.get(key) != (params.train | train).get(key)
        }
    elif cause == "adapter":
        lora = changed(params.lora_of(model).model_dump(mode="json"), params.lora.model_dump(mode="json"))
    else:
        return None, None
    name = next((letter for letter in ascii_uppercase if letter not in params.variants), "NEW")
    parts = {"mix": mix, "train": train} | ({"lora": lora} if lora else {})
    text = ", ".join(
        f"{part}: {{{', '.join(f'{key}: {yaml_value(value)}' for key, value in settings.items())}}}"
        for part, settings in parts.items()
    )
    return name, f"dvc exp run -S '+variants.{name}={{{text}}}'"


def changed(settings: Facts, default: Facts) -> Facts:
    """The settings that are not the default's."""
    return {key: value for key, value in settings.items() if value != default.get(key)}
