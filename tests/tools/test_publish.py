"""`python -m tools.publish`: the real client against a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from abctune.core.errors import UserError
from abctune.llm.merge import Agreement, load_merged
from abctune.llm.tokenizer import load_tokenizer
from tests.finished import set_base
from tests.hub_server import Hub
from tests.workspace import Workspace
from tools.publish.__main__ import main

TOKEN = "hf_secretsecretsecret"
REPO = "someone/small-B"
ADAPTER = "models/B/adapter_model.safetensors"
LLAMA = {
    "origin": "hub",
    "repo": "unsloth/Llama-3.2-3B-Instruct",
    "revision": "0" * 40,
    "license": "llama3.2",
}
Publish = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.writer = TOKEN
        yield hub


@pytest.fixture
def environment(study: Workspace, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", *(n for n in os.environ if n.lower().endswith("_proxy"))):
        monkeypatch.delenv(name, raising=False)
    # The loopback hub has no Xet storage, which the real one prefers; the files' bytes and the commit are the same.
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(study.root / "hf-home")}


@pytest.fixture
def publish_as_a_user(study: Workspace, environment: dict[str, str]) -> Publish:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return study.tool("publish", "B", *arguments, HF_TOKEN=TOKEN, **environment)

    return run


@pytest.fixture
def publish(hub: Hub, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys) -> Publish:
    """The same without a process of its own, which saves seconds; the client has read its settings already."""
    for name, value in {"ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)

    def run(*arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("HF_TOKEN", token)
        app = typer.Typer()
        app.command()(main)
        try:
            app(["B", *arguments], standalone_mode=False)
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("error: "))
    return "\n".join(lines[start:])


def test_an_adapter_arrives_with_its_card_and_loads_on_its_base(
    study: Workspace, hub: Hub, publish_as_a_user: Publish
) -> None:
    done = publish_as_a_user("--repo", REPO)

    (repository,) = hub.repositories
    assert (repository.name, repository.private) == (REPO, True)
    assert f"sent to {hub.url}/{REPO}/commit/{repository.revision}" in done.stdout
    assert repository.files["adapter_model.safetensors"] == (study.root / ADAPTER).read_bytes()
    assert {"adapter_config.json", "tokenizer.json", "training.json", "README.md"} <= set(repository.files)
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.library_name == "peft"
    assert "## Results" in card.text and "with 95 % intervals" in card.text
    assert f'PeftModel.from_pretrained(base, "{REPO}")' in card.text
    assert "short card" not in card.text

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    received = study.root / "received"
    received.mkdir()
    for name, content in repository.files.items():
        (received / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained("models/base")
    PeftModel.from_pretrained(base, received)


def test_a_merged_model_arrives_in_16_bit_and_answers_as_the_adapter_does(
    study: Workspace, hub: Hub, publish: Publish
) -> None:
    done = publish("--repo", REPO, "--merged")

    (repository,) = hub.repositories
    assert not any("adapter" in name for name in repository.files)
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert "rounded to bfloat16" in card.text
    assert "B merged to bfloat16: logits moved by " in done.stdout

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    received = study.root / "received"
    received.mkdir()
    for name, content in repository.files.items():
        (received / name).write_bytes(content)
    merged = AutoModelForCausalLM.from_pretrained(received, dtype="auto")
    assert merged.dtype == torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained("models/base")
    adapted = PeftModel.from_pretrained(base, "models/B")
    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.inference_mode():
        wanted, got = adapted(input_ids=ids).logits, merged.float()(input_ids=ids).logits
        with adapted.disable_adapter():
            without = adapted(input_ids=ids).logits
    assert (got - wanted).abs().mean() < 0.02 * (without - wanted).abs().mean()


def test_the_token_reaches_the_hub_only_and_is_nowhere_to_be_read(
    study: Workspace, hub: Hub, publish_as_a_user: Publish
) -> None:
    done = publish_as_a_user("--repo", REPO)
    assert hub.store_requests
    assert all(TOKEN not in str(request) for request in hub.store_requests)
    assert TOKEN not in done.stdout + done.stderr
    assert all(TOKEN.encode() not in content for content in hub.repositories[0].files.values())
    assert all(TOKEN.encode() not in path.read_bytes() for path in study.root.rglob("*") if path.is_file())


def test_a_second_upload_replaces_the_first(hub: Hub, publish: Publish) -> None:
    publish("--repo", REPO, "--merged")
    publish("--repo", REPO)
    assert "model.safetensors" not in hub.repositories[0].files
    assert "adapter_model.safetensors" in hub.repositories[0].files


def test_nothing_is_sent_where_verify_finds_something(study: Workspace, hub: Hub, publish: Publish) -> None:
    content = (study.root / ADAPTER).read_bytes()
    (study.root / ADAPTER).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    line = refusal(publish("--repo", REPO))
    assert "nothing is published, since `python -m tools.verify` finds:" in line
    assert f"{ADAPTER} is damaged or was changed" in line
    assert hub.requests == []


def test_a_dry_run_lists_the_files_and_needs_neither_token_nor_network(hub: Hub, publish: Publish) -> None:
    done = publish("--repo", REPO, "--dry-run", token="")
    assert "adapter_model.safetensors: " in done.stdout
    assert "nothing was sent" in done.stdout
    assert hub.requests == []


def test_without_a_token_it_says_so_at_once(hub: Hub, publish: Publish) -> None:
    assert "HF_TOKEN is not set" in refusal(publish("--repo", REPO, token=""))
    assert hub.requests == []


def test_a_token_without_the_right_to_write_is_refused_unseen(hub: Hub, publish: Publish) -> None:
    line = refusal(publish("--repo", REPO, token="hf_other"))
    assert f"--repo {REPO}: the token in HF_TOKEN may not write there (status 403)" in line
    assert "hf_other" not in line


def test_a_llama_goes_out_under_a_llama_name_with_its_notice(
    study: Workspace, hub: Hub, publish: Publish
) -> None:
    set_base(study.root, LLAMA)
    for variant in "ABC":
        study.stage("collect", variant)
    study.stage("plot")
    study.run("dvc", "commit", "--force")
    line = refusal(publish("--repo", REPO))
    assert "wants a name that begins with Llama, such as someone/Llama-small-B" in line

    publish("--repo", "someone/Llama-small-B")
    files = hub.repositories[0].files
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("llama3.2", LLAMA["repo"])
    assert card.text.lstrip().startswith("# Llama-abctune-B\n")
    assert "Built with Llama." in card.text
    assert files["NOTICE"].decode().startswith("Llama 3.2 is licensed under the Llama 3.2 Community License")
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (LLAMA["repo"], LLAMA["revision"])


def test_an_adapter_too_weak_for_bfloat16_is_not_merged_to_it(study: Workspace) -> None:
    """Rounding would undo the training, and the model on the hub would be the base under another name."""
    tensors = {
        name: tensor * (1e-4 if "lora_B" in name else 1) for name, tensor in load_file(ADAPTER).items()
    }
    save_file(tensors, ADAPTER)
    tokenizer = load_tokenizer()
    with pytest.raises(UserError, match="merged to bfloat16: rounding its weights moved the logits by"):
        load_merged(Path("models/B"), torch.bfloat16, tokenizer)
    _, exact = load_merged(Path("models/B"), torch.float32, tokenizer)
    assert exact.fault() is None


def test_a_wrong_merge_is_noticed(study: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one kind of layer had been left out."""
    from peft.tuners.lora.layer import Linear

    merge = Linear.merge
    monkeypatch.setattr(
        Linear, "merge", lambda self, **options: None if self.out_features == 64 else merge(self, **options)
    )
    with pytest.raises(UserError, match=r"models/B merged to float16: (its logits differ|rounding)"):
        load_merged(Path("models/B"), torch.float16, load_tokenizer())


@pytest.mark.parametrize(
    ("difference", "effect", "wrong"),
    [(0.01, 1.0, False), (0.2, 10.0, True), (0.05, 0.3, True), (float("nan"), 1, True)],
)
def test_what_counts_as_agreement(difference: float, effect: float, wrong: bool) -> None:
    assert bool(Agreement(difference, effect, spread=3.0).fault()) == wrong
