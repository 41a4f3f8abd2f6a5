"""What the usual licenses of base models require of a published model derived from one.

Llama: section 1.b of the Llama 2, 3, 3.1, 3.2, 3.3 and 4 community licenses. Gemma: section 3.1 of its terms of use. Qwen:
sections 3 and 4 of the Qwen license and the Qwen research license. Others (Apache, MIT, ...) ask that license and notice
files travel along, which is done for every model. The license decides, not the model's name: TinyLlama is Apache-2.0.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from abctune.core.files import write_text

# The base model's own, which its license asks to pass on.
FILES = ("LICENSE*", "USE_POLICY*", "NOTICE*")


@dataclass(frozen=True)
class Terms:
    """A license's conditions on a model's name, card and files; empty: it has none of that kind."""

    prefix: str = ""  # how the published model's name must begin
    sentence: str = ""  # on the card
    notice: str = ""  # the text of a file NOTICE


def pass_on(license_: str, base: Path, folder: Path) -> None:
    """Copy the base model's license files, and the notice that its license asks for, into a folder that will be shared."""
    for pattern in FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    if notice := terms_of(license_).notice:
        path = folder / "NOTICE"
        theirs = path.read_text(encoding="utf-8") if path.exists() else ""
        if notice not in theirs:
            write_text(path, f"{theirs.rstrip()}\n\n{notice}" if theirs else notice)


def terms_of(license_: str) -> Terms:
    """The conditions of a license as a model card names it, such as `llama3.2`, `gemma` or `apache-2.0`."""
    key = re.sub(r"[\s_-]+", "", license_.lower()).removeprefix("meta")
    if found := re.match(r"llama(\d(?:\.\d)?)?", key):
        return _llama(found[1] or "")
    if key.startswith("gemma"):
        terms = (
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
        )
        return Terms(notice=f"{terms}\n")
    if key.startswith(("qwen", "tongyiqianwen")):
        agreement = "RESEARCH LICENSE AGREEMENT" if "research" in key else "LICENSE AGREEMENT"
        rights = "Copyright (c) Alibaba Cloud. All Rights Reserved."
        return Terms(
            sentence="Built with Qwen.", notice=f"Qwen is licensed under the Qwen {agreement}, {rights}\n"
        )
    return Terms()


def _llama(version: str) -> Terms:
    name, rights = f"Llama {version}".strip(), "Copyright © Meta Platforms, Inc. All Rights Reserved."
    if version == "3":
        name = "Meta Llama 3"
    notice = f"{name} is licensed under the {name} Community License, {rights}\n"
    if version == "2":  # which asks for the notice alone
        return Terms(notice=notice.replace("the Llama 2", "the LLAMA 2"))
    if version == "3":
        return Terms("Llama 3", "Built with Meta Llama 3.", notice)
    return Terms("Llama", "Built with Llama.", notice)
