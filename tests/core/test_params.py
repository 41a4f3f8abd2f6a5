"""A mistake in params.yaml is one line that names the key, before any work starts."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from abctune.core.errors import UserError
from abctune.core.params import load_params

GIVEN = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())
TINY_TRAIN, B_TRAIN = GIVEN["profiles"]["tiny"]["train"], GIVEN["variants"]["B"]["train"]


def changed(tmp_path, path, value):
    params = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())
    *parents, key = path.split(".")
    place = params
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[key]
    else:
        place[key] = value
    file = tmp_path / "params.yaml"
    with file.open("w") as out:
        YAML().dump(params, out)
    return file


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("variants.B.train.learning_rte", 1e-4, "variants.B.train.learning_rte: unknown key"),
        ("variants.B.train.learning_rate", None, "variants.B.train.learning_rate: missing; add it"),
        (
            "variants.B.train.max_steps",
            -3,
            "variants.B.train.max_steps: input should be greater than or equal to 1, got -3",
        ),
        (
            "variants.B.train.max_steps",
            "forty",
            "variants.B.train.max_steps: input should be a valid integer, got 'forty'",
        ),
        (
            "profiles.full.train",
            {"max_steps": 0},
            "profiles.full.train.max_steps: input should be greater than or equal to 1",
        ),
        ("train.keep", "best", "train.keep: input should be 'train_loss', 'eval_loss' or 'last'"),
        ("variants.A.mix.chatt", 5, "variants.A.mix.chatt: no such source; sources has chat, instruct"),
        (
            "profiles.tiny.split",
            {"val": 0.05, "test": 0.99},
            "profiles.tiny.split: val + test = 1.04 leaves nothing to train on",
        ),
        ("profiles.tiny.split.test", 1.5, "profiles.tiny.split.test: input should be less than 1, got 1.5"),
        ("profile", "huge", "profile: 'huge' is not one of profiles (tiny, full)"),
        ("evaluation.test_of", "Q", "evaluation.test_of: 'Q' is not one of variants (A, B, C)"),
        (
            "variants.base",
            {"mix": {"chat": 1}, "train": {}},
            "variants.base: this name means the untuned model",
        ),
        (
            "variants.x;touch y",
            {"mix": {"chat": 1}, "train": {}},
            "a name may hold letters, digits, '_' and '-' only",
        ),
        (
            "profiles.full.model.revision",
            "main",
            "profiles.full.model.revision: 'main' is not a full commit hash",
        ),
        ("profiles.full.sources.chat.origin", "ftp", "profiles.full.sources.chat: input tag 'ftp'"),
        (
            "profiles.tiny.sources.more",
            {"origin": "local", "path": "data/own/x.jsonl"},
            "profiles.tiny.sources: must name the same sources",
        ),
        ("profiles.tiny.sources.chat", {"origin": "local", "path": "../x.jsonl"}, "must lie under data/own/"),
        (
            "train.publish",
            "lowest_eval_loss",
            "variants.A.train: publish: lowest_eval_loss needs eval_steps above 0, so that there is an eval loss",
        ),
        (
            "variants.B.train",
            B_TRAIN | {"publish": "lowest_eval_loss", "eval_steps": 41},
            "variants.B.train: publish: lowest_eval_loss needs an eval loss to go by, and eval_steps 41 is more than "
            "the run's 40 steps; lower eval_steps",
        ),
        (
            "profiles.tiny.eval.served_formats",
            ["8bit"],
            "profiles.tiny.eval.served_formats.0: input should be '4bit'",
        ),
        (
            "evaluation.checks",
            {"json": {"kind": "json"}},
            "evaluation.checks.json: the test rows are those of mix C",
        ),
        (
            "evaluation.checks",
            {"json": {"kind": "json", "rows": 0}},
            "evaluation.checks.json.rows: input should",
        ),
        (
            "profiles.tiny.sources.hub",
            {"origin": "hub", "repo": "x"},
            "profiles.tiny.sources.hub.repo: string should match",
        ),
        ("variants.json", {"mix": {}, "train": {}}, "variants.json.mix: dictionary should have"),
        ("variants.A.mix.hub", 0, "variants.A.mix.hub: input should be greater"),
        ("profiles.tiny.general", {"origin": "hub"}, "profiles.tiny.general.repo: missing; add it"),
        ("lora.target_modules", 5, "lora.target_modules: input should be 'all-linear', got 5"),
        ("lora.r", 0, "lora.r: input should be greater than or equal to 1, got 0"),
        ("seed", -1, "seed: input should be greater than or equal to 0"),
    ],
)
def test_a_mistake_is_named(tmp_path, path, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_params(changed(tmp_path, path, value))


@pytest.mark.parametrize(
    "name",
    ["a.ndjson", "a.jsonlines", "a.NDJSON.gz", "a.csv.zst", "v1.2", "release.final", "part-*.json*", "rows"],
)
def test_whatever_fetch_reads_can_be_named_as_own_data(tmp_path, name):
    source = {"origin": "local", "path": f"data/own/{name}"}
    assert load_params(changed(tmp_path, "profiles.tiny.sources.chat", source)).active.sources["chat"].path


@pytest.mark.parametrize("name", ["a.docx", "a.txt.gz", "*.txt"])
def test_a_file_that_fetch_does_not_read_is_named_before_anything_runs(tmp_path, name):
    source = {"origin": "local", "path": f"data/own/{name}"}
    with pytest.raises(
        UserError, match=re.escape(f"'data/own/{name}' must end in .jsonl, .json, .csv, .tsv, .parquet or")
    ):
        load_params(changed(tmp_path, "profiles.tiny.sources.chat", source))


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(UserError, match="run from the repository's root"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("profile: [tiny")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")


def test_the_profile_overrides_the_variant_which_overrides_the_common_recipe(tmp_path):
    file = changed(tmp_path, "variants.B.train.weight_decay", 0.5)
    assert load_params(file).train_of("B").weight_decay == 0.5
    assert load_params(file).train_of("A").weight_decay == 0.01
    assert load_params(file).train_of("B").optim == "adamw_torch"
    assert load_params(file).train_of("B", "full").optim == "adamw_8bit"


def test_recipes_of_the_same_values_are_equal_wherever_these_come_from(tmp_path):
    file = changed(tmp_path, "variants.B.train.weight_decay", 0.01)
    here = load_params(file).train_of("B")
    assert here.key("weight_decay") != load_params().train_of("B").key("weight_decay")
    assert here == load_params().train_of("B")
    assert here != here.model_copy(update={"weight_decay": 0.5})


def test_the_reports_recipes_are_as_reported():
    params = load_params()
    for variant, (batch, accumulation, steps, rate, warmup, logging, evaluation) in {
        "A": (2, 4, 60, 2e-4, 5, 1, 0),
        "B": (4, 4, 40, 2e-5, 50, 10, 10),
        "C": (4, 4, 40, 2e-5, 50, 10, 10),
    }.items():
        recipe = params.train_of(variant, "full")
        assert (recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps) == (
            batch,
            accumulation,
        )
        assert (recipe.max_steps, recipe.peak_learning_rate, recipe.warmup_steps) == (steps, rate, warmup)
        assert (recipe.logging_steps, recipe.eval_steps) == (logging, evaluation)
        assert (recipe.optim, recipe.weight_decay, recipe.lr_scheduler_type) == ("adamw_8bit", 0.01, "linear")
        assert recipe.keep == "train_loss" and recipe.load_in_4bit
    assert params.variants["C"].mix == {"chat": 15_000, "instruct": 15_000}


@pytest.mark.parametrize("name", ["loss", "verdict", "base"])
def test_a_variant_may_not_take_a_name_of_the_summary(tmp_path, name):
    with pytest.raises(UserError, match=rf"variants\.{name}: this name .*; choose another"):
        load_params(changed(tmp_path, f"variants.{name}", {"mix": {"chat": 1}, "train": {}}))


@pytest.mark.parametrize("name", ["overall", "general"])
def test_a_source_may_not_take_a_name_of_the_summary(tmp_path, name):
    with pytest.raises(UserError, match=rf"sources\.{name}: this name .*; choose another"):
        load_params(changed(tmp_path, f"sources.{name}", {"schema": "auto"}))


@pytest.mark.parametrize(
    "word", ["--index-url=http://127.0.0.1/", "-r", "x @ http://127.0.0.1/x.whl", "a b", ""]
)
def test_a_package_is_no_option_of_pips_and_no_address(tmp_path, word):
    for key in ("package", "version"):
        with pytest.raises(UserError, match=rf"profiles\.tiny\.model\.{key}: "):
            load_params(changed(tmp_path, f"profiles.tiny.model.{key}", word))


def test_a_variants_adapter_overrides_the_common_one(tmp_path):
    file = changed(tmp_path, "variants.B.lora", {"r": 4, "use_rslora": True, "target_modules": "all-linear"})
    params = load_params(file)
    ours, common = params.lora_of("B"), params.lora_of("C")
    assert (ours.r, ours.use_rslora, ours.target_modules) == (4, True, "all-linear")
    assert ours.lora_alpha == common.lora_alpha and common == params.lora


def test_a_mistake_in_a_variants_adapter_is_named(tmp_path):
    for value, message in (
        ({"rank": 4}, "variants.B.lora.rank: unknown key"),
        ({"r": 0}, "variants.B.lora.r: input should be greater than or equal to 1, got 0"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            load_params(changed(tmp_path, "variants.B.lora", value))


def test_epochs_instead_of_steps(tmp_path):
    train = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 1.5}
    recipe = load_params(changed(tmp_path, "profiles.tiny.train", TINY_TRAIN | train)).train_of("B")
    assert recipe.max_steps is None  # the profile says how long, so the variant's 40 steps do not hold
    assert recipe.with_steps(rows=10).steps == 5  # 4 + 4 + 2 rows an epoch: 3 steps, times 1.5
    with pytest.raises(
        UserError, match=re.escape("variants.B.train: set max_steps or num_train_epochs, one")
    ):
        load_params(changed(tmp_path, "variants.B.train.num_train_epochs", 2))


def test_epochs_that_end_before_the_first_evaluation_leave_no_loss_to_choose_a_replicate_by(tmp_path):
    train = {"num_train_epochs": 1, "eval_steps": 10, "publish": "lowest_eval_loss"}
    recipe = load_params(changed(tmp_path, "profiles.tiny.train", TINY_TRAIN | train)).train_of("B")
    assert recipe.with_steps(rows=10).steps == 10
    with pytest.raises(
        UserError, match=r"publish: lowest_eval_loss .* eval_steps 10 is more than the run's 9 steps"
    ):
        recipe.with_steps(rows=9)
