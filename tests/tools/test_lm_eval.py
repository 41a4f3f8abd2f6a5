"""lm-eval gets base and adapter as they are trained, and what it finds is kept with its error."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tools import lm_eval as harness


@pytest.fixture
def fake_lm_eval(monkeypatch, tmp_path):
    """A stand-in for lm-eval that writes down what it is given; a real one needs a hub for its questions."""
    given: list[dict] = []
    package, tasks, models, huggingface = (
        ModuleType(name) for name in ("lm_eval", "tasks", "models", "huggingface")
    )
    huggingface.HFLM = lambda **arguments: given.append(arguments) or SimpleNamespace(**arguments)
    tasks.TaskManager = lambda include_path: include_path
    package.simple_evaluate = lambda **asked: {
        "results": {
            "arc": {
                "alias": "arc",
                "acc,none": 0.5,
                "acc_stderr,none": 0.05,
                "bleu,strict": 2,
                "bleu_stderr,strict": "N/A",
            }
        },
        "versions": {"arc": 1.0},
        "n-samples": {"arc": {"original": 100, "effective": asked["limit"] or 100}},
    }
    modules = {
        "lm_eval": package,
        "lm_eval.tasks": tasks,
        "lm_eval.models": models,
        "lm_eval.models.huggingface": huggingface,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(harness.importlib.metadata, "version", lambda name: "0.4.13")
    monkeypatch.setattr(
        harness, "load_tokenizer", lambda chat_template, template_args: f"tokenizer with {chat_template}"
    )
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "metrics/harness")
    monkeypatch.setattr(harness, "MODELS", tmp_path / "models")
    (tmp_path / "models/B").mkdir(parents=True)
    (tmp_path / "models/B/adapter_config.json").write_text("{}")
    (tmp_path / "models/B/adapter_model.safetensors").write_bytes(b"weights")
    return given


def run(**settings) -> None:
    harness.main(
        **{
            "tasks": "arc",
            "models": "base,B",
            "limit": 7,
            "batch_size": 4,
            "chat": False,
            "include_path": None,
            "offline": True,
        }
        | settings
    )


def test_the_adapter_is_handed_over_with_its_base_and_the_scores_kept_with_their_error(
    fake_lm_eval, tmp_path, capsys
):
    run()
    base, variant = fake_lm_eval
    assert (base["pretrained"], base["peft"]) == ("models/base", None)
    assert (variant["pretrained"], variant["peft"]) == ("models/base", str(tmp_path / "models/B"))
    assert variant["tokenizer"] == "tokenizer with model" and variant["batch_size"] == 4
    record = json.loads((tmp_path / "metrics/harness/B.json").read_text())
    assert record["tasks"]["arc"]["scores"]["acc"] == {"value": 0.5, "stderr": 0.05}
    assert record["tasks"]["arc"]["scores"]["bleu (strict)"] == {"value": 2.0, "stderr": None}
    assert record["tasks"]["arc"]["n"] == 7 and len(record["adapter_sha256"]) == 64
    assert "B arc acc: 0.5000 ± 0.0500 (n = 7)" in capsys.readouterr().out


def test_without_lm_eval_one_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        run(models="base")
    assert capsys.readouterr().err == (
        "error: lm-eval is not installed; `pip install 'lm-eval==0.4.13'` into this environment adds it\n"
    )


def test_a_missing_adapter_is_named_before_anything_loads(fake_lm_eval, capsys):
    with pytest.raises(SystemExit):
        run(models="base,C")
    assert "`dvc repro train@C` makes it" in capsys.readouterr().err
    assert fake_lm_eval == []


def test_the_extra_is_the_version_that_the_remedy_names():
    import tomllib
    from pathlib import Path

    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["harness"] == ["lm-eval==0.4.13"]
