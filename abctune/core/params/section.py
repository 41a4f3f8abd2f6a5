"""The class of all sections of params.yaml, and the types of values that several of them share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PARAMS_FILE = Path("params.yaml")
BASE = "base"  # the name of the untuned model; no variant may have it
# Keys of metrics/summary.json that stand next to the models' and to the sources' names.
VARIANT_KEYS = ("loss", "verdict")
SOURCE_KEYS = ("overall", "general")
# Keys become file names, and people type them in commands, hence nothing but these characters;
# no dot either, which DVC reads as a step into a mapping.
KEY = re.compile(r"[A-Za-z0-9_-]+")


class Section(BaseModel):
    """A part of params.yaml: unknown keys, NaN and infinity are errors, and nothing changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Words of pip's command line: no option, no address.
Package = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Version = Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9.+!-]*$")]
# The model's own, one that abctune brings, or a file of the user's own.
ChatTemplate = Annotated[str, Field(pattern=r"^(model|llama-3\.1|chatml-tools|models/own/[\w./-]+\.jinja)$")]
# Arguments of a chat template become variables inside it.
TemplateArguments = dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], bool | int | str]
ExportFormat = Literal["merged_16bit", "f16", "q8_0", "q4_k_m"]
BaseFormat = Literal["4bit", "16bit"]  # NF4 as QLoRA trains on it; bfloat16, or float16 where a GPU lacks it


def below(path: str, folder: tuple[str, str]) -> str:
    """Return the path if it lies in the folder.

    Raises:
        ValueError: it lies elsewhere, where DVC would not see it change.
    """
    parts = Path(path).parts
    if parts[:2] != folder or len(parts) < 3 or ".." in parts:
        raise ValueError(
            f"{path!r} must lie under {'/'.join(folder)}/, the folder that DVC watches; copy it there"
        )
    return path
