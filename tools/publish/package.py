"""The folder that is uploaded: an adapter, or the model it was merged into, with tokenizer, card and record."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from abctune.core.adapters import CONFIG, WEIGHTS
from abctune.core.errors import UserError
from abctune.core.files import read_json, write_json, write_text
from abctune.core.licenses import pass_on, terms_of
from abctune.core.places import BASE_MODEL, CARDS, MODELS
from abctune.core.records import SourceRecord, TrainingRecord, read_record
from abctune.llm.device import DTYPES
from abctune.llm.tokenizer import load_tokenizer
from tools.promote.registry import reasons_at_head

if TYPE_CHECKING:
    from abctune.llm.merge import Agreement

FIRST_SECTION = "## Data\n"  # of the card that plot writes; what only now is known goes before it

USE = """## Use

```python
{code}
```

"""
ADAPTER_CODE = """from peft import PeftModel
from transformers import {loader}, AutoTokenizer

base = {loader}.from_pretrained({base}, dtype="auto")
model = PeftModel.from_pretrained(base, "{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")"""
MERGED_CODE = """from transformers import {loader}, AutoTokenizer

model = {loader}.from_pretrained("{repo}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{repo}")"""
MERGED = """This repository holds the whole model: the adapter's weights added into the base's and rounded to {dtype}.
On ten fixed prompts that moved the logits by {difference:.2g} (root mean square), where the adapter itself moves them
by {effect:.2g}.

"""


def require_name(repo: str, base: SourceRecord) -> None:
    """Refuse a name that the base model's license does not allow."""
    owner, name = repo.split("/")
    prefix = terms_of(base.license).prefix
    if not name.replace("-", " ").startswith(prefix):
        raise UserError(
            f"--repo {repo}: the license of {base.name} wants a name that begins with {prefix}, such as "
            f"{owner}/{prefix.replace(' ', '-')}-{name}"
        )


def base_of(variant: str) -> SourceRecord:
    """What `source.json` said of the base model when the variant was trained."""
    return read_record(MODELS / variant / "training.json", TrainingRecord, f"train@{variant}").base_model


def pack_adapter(variant: str, repo: str, folder: Path) -> None:
    """Fill `folder` with the adapter. Its config names the base as the hub knows it, not as a path of this project."""
    base = base_of(variant)
    copy(variant, folder, but=("README.md", "adapter_config.json"))
    config = read_json(MODELS / variant / "adapter_config.json", f"train@{variant}")
    at = {"base_model_name_or_path": base.repo or base.full_name, "revision": base.revision}
    write_json(folder / "adapter_config.json", config | at)
    named = f'"{base.repo}", revision="{base.revision}"' if base.repo else f'"{BASE_MODEL}"'
    card = ModelCard(read_card(variant))
    about = "" if base.repo else f"`{BASE_MODEL}` is {base.full_name}, which is on no model hub.\n\n"
    use = USE.format(code=ADAPTER_CODE.format(loader=_loader(BASE_MODEL), base=named, repo=repo))
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
    copy(variant, folder, but=("README.md", WEIGHTS, CONFIG))
    card = ModelCard(read_card(variant))
    assert isinstance(card.data, ModelCardData)  # what ModelCard's front matter is read into
    card.data.library_name = "transformers"
    if card.data.base_model:
        card.data["base_model_relation"] = "finetune"
    about = MERGED.format(dtype=dtype, difference=agreement.difference, effect=agreement.effect)
    use = USE.format(code=MERGED_CODE.format(loader=_loader(folder), repo=repo))
    insert(card, about + use + promotion(variant))
    finish(folder, card, base_of(variant))
    return agreement


def _loader(folder: Path) -> str:
    """The name of transformers' class by which a reader of the card loads the model."""
    from abctune.llm.auto_class import auto_class

    name: str = auto_class(folder).__name__
    return name


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


def finish(folder: Path, card: ModelCard, base: SourceRecord) -> None:
    """Write the card, the base model's license files, and the notice that its license asks for."""
    write_text(folder / "README.md", f"{str(card).rstrip()}\n")
    pass_on(base.license, BASE_MODEL, folder)


def files_of(folder: Path) -> dict[str, int]:
    """Size in bytes of each file, by name."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
