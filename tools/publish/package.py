"""The folder that goes out: an adapter, or the model it was merged into, with tokenizer, card and record."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from abctune.core.errors import UserError
from abctune.core.files import read_json, write_json, write_text
from abctune.llm.device import DTYPES
from abctune.llm.tokenizer import BASE_MODEL, load_tokenizer
from tools.promote.registry import reasons_at_head

if TYPE_CHECKING:
    from abctune.llm.merge import Agreement

MODELS, CARDS = Path("models"), Path("plots/cards")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
LLAMA = "Llama"
NOTICE = "{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
FIRST_SECTION = "## Data\n"  # of the card that plot writes; what only now is known goes before it

USE = """## Use

```python
{code}
```

"""
ADAPTER_CODE = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base}, dtype="auto")
model = PeftModel.from_pretrained(base, "{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")"""
MERGED_CODE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{repo}")"""
MERGED = """This repository holds the whole model: the adapter's weights added into the base's and rounded to {dtype}.
On ten fixed prompts that moved the logits by {difference:.2g} (root mean square), where the adapter itself moves them
by {effect:.2g}.

"""


def require_name(repo: str, base: dict[str, Any]) -> None:
    """Refuse a name that the base model's licence does not allow."""
    if is_llama(base) and not repo.split("/")[1].startswith(LLAMA):
        raise UserError(
            f"--repo {repo}: the licence of {base.get('repo', 'the base model')} wants a name that begins with {LLAMA}, "
            f"such as {repo.split('/')[0]}/{LLAMA}-{repo.split('/')[1]}"
        )


def is_llama(base: dict[str, Any]) -> bool:
    """Whether the base model's licence is Meta's, which sets conditions on names and notices."""
    named = f"{base.get('repo', '')} {base.get('license', '')}"
    return LLAMA.lower() in named.lower()


def base_of(variant: str) -> dict[str, Any]:
    """What `source.json` said of the base model when the variant was trained."""
    return read_json(MODELS / variant / "training.json", f"train@{variant}")["base_model"]


def pack_adapter(variant: str, repo: str, folder: Path) -> None:
    """Fill `folder` with the adapter. Its config names the base as the hub knows it, not as a path of this project."""
    base = base_of(variant)
    copy(variant, folder, but=("README.md", "adapter_config.json"))
    config = read_json(MODELS / variant / "adapter_config.json", f"train@{variant}")
    at = {"base_model_name_or_path": base.get("repo") or name_of(base), "revision": base.get("revision")}
    write_json(folder / "adapter_config.json", config | at)
    named = f'"{base["repo"]}", revision="{base["revision"]}"' if base.get("repo") else f'"{BASE_MODEL}"'
    card = ModelCard(read_card(variant))
    about = "" if base.get("repo") else f"`{BASE_MODEL}` is {name_of(base)}, which is on no model hub.\n\n"
    use = USE.format(code=ADAPTER_CODE.format(base=named, repo=repo))
    insert(card, use + about + promotion(variant))
    finish(folder, card, base)


def pack_merged(variant: str, repo: str, dtype: str, template: dict[str, Any], folder: Path) -> Agreement:
    """Fill `folder` with base and adapter as one model, whose answers have been compared with the adapter's.

    Raises:
        UserError: the merged model does not answer as the adapter does.
    """
    from abctune.llm.merge import load_merged

    tokenizer = load_tokenizer(**template)
    model, agreement = load_merged(MODELS / variant, DTYPES[dtype], tokenizer)
    model.save_pretrained(folder)
    copy(variant, folder, but=("README.md", *ADAPTER_FILES))
    card = ModelCard(read_card(variant))
    assert isinstance(card.data, ModelCardData)  # what ModelCard's front matter is read into
    card.data.library_name = "transformers"
    if card.data.base_model:
        card.data["base_model_relation"] = "finetune"
    about = MERGED.format(dtype=dtype, difference=agreement.difference, effect=agreement.effect)
    use = USE.format(code=MERGED_CODE.format(repo=repo))
    insert(card, about + use + promotion(variant))
    finish(folder, card, base_of(variant))
    return agreement


def copy(variant: str, folder: Path, but: tuple[str, ...]) -> None:
    """Copy the files of models/<variant>/ into `folder`, except those named in `but`."""
    for path in sorted((MODELS / variant).iterdir()):
        if path.is_file() and path.name not in but:
            shutil.copyfile(path, folder / path.name)


def read_card(variant: str) -> str:
    """The complete card, results included, that plot has written."""
    path = CARDS / f"{variant}.md"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} not found; `dvc repro plot` makes it") from None


def promotion(variant: str) -> str:
    """Why this commit's adapter was promoted, as a section of the card; empty where it was not."""
    reasons = reasons_at_head(variant)
    return f"## Why it was promoted\n\n```text\n{reasons}\n```\n\n" if reasons else ""


def insert(card: ModelCard, text: str) -> None:
    """Put text into the card before its first section."""
    before, heading, after = card.text.partition(FIRST_SECTION)
    card.text = f"{before}{text}{heading}{after}"


def finish(folder: Path, card: ModelCard, base: dict[str, Any]) -> None:
    """Write the card, and the notice that a Llama's licence requires."""
    write_text(folder / "README.md", f"{str(card).rstrip()}\n")
    if is_llama(base):  # a condition of its licence
        version = base["license"].lower().removeprefix("llama").strip("- ")
        write_text(folder / "NOTICE", NOTICE.format(name=f"{LLAMA} {version}".strip()))


def name_of(base: dict[str, Any]) -> str:
    """The base model's name where it comes from no hub."""
    name = base.get("package") or base.get("path") or "a local model"
    return f"{name} {base['version']}" if base.get("version") else name


def files_of(folder: Path) -> dict[str, int]:
    """Size in bytes of each file, by name."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
