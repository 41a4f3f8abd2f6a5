"""Write the table of docs/models.md out of what is declared, tested and measured: `python -m tests.make_models_page`.

`--run` sends every architecture, or those named behind it, through load, verify, merge and chat first, on a CPU (minutes), and
keeps what it finds.

A test holds that the committed page is what this makes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from abctune.core.files import write_json
from abctune.llm.gguf_families import FAMILIES
from stages.train.plain import UNSLOTH
from tests.llm.test_architectures import ARCHITECTURES
from tests.llm.wrappers import WRAPPERS
from tests.pages import with_part
from tests.train.test_plain import PLAIN

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/models.md"
PATHS = ROOT / "tests/llm/whole_path.json"
GPU = ROOT / "benchmarks/results/gpu_models.json"
START, END = "<!-- table: made by tests.make_models_page -->\n", "<!-- end of table -->"
WRAPPERS_START, WRAPPERS_END = (
    "<!-- models that read images too: made by tests.make_models_page -->\n",
    "<!-- end of models that read images too -->",
)
# Of the gradient, over what 16 bit alone cost transformers: more would be another computation, not rounding.
TOLERANCE = 1.5
# Why there is no GGUF of an architecture: what abctune/llm/gguf_families.py would have to know of it.
NO_GGUF = {
    "deepseek_v3": "latent attention",
    "gemma4_text": "embeddings of each layer, shared keys and values",
    "glm": "query, key and value are one matrix in llama.cpp",
    "gpt2": "transposed matrices, learned positions",
    "gpt_oss": "attention sinks, experts with biases",
    "granitemoe": "experts under other names",
    "granitemoehybrid": "state-space layers",
    "llama4_text": "chunked attention, transposed experts",
    "ministral3": "attention scaled by position",
    "mixtral": "llama.cpp's Llama family has no experts here",
    "olmo3": "rotary scaling of some layers alone",
    "phi": "biases in every layer, rotation of a part of each head",
    "qwen3_5_text": "linear attention",
    "qwen3_next": "linear attention",
    "stablelm": "rotation of a part of each head",
    "starcoder2": "biases in every layer",
}
STACKED = ("qwen3_moe", "mixtral", "qwen3_next")  # experts that PEFT adapts as one tensor


def rows() -> Iterator[str]:
    """A line per architecture, by the alphabet."""
    measured = json.loads(GPU.read_text(encoding="utf-8"))["models"]
    paths = json.loads(PATHS.read_text(encoding="utf-8"))
    yield (
        "| `model_type` | load | train on a CPU | train on a GPU | eval's loss | verify | export merged, publish | export GGUF |"
        " chat |\n|---|---|---|---|---|---|---|---|---|"
    )
    for kind in sorted({*ARCHITECTURES, *FAMILIES}):
        yield (
            f"| {kind} | {paths[kind]['load']} | {on_a_cpu(kind)} | {on_a_gpu(kind, measured)} | "
            f"{'yes' if kind in ARCHITECTURES else 'not tested'} | {paths[kind]['verify']} | {paths[kind]['merged']} | "
            f"{'yes' if kind in FAMILIES else f'no: {NO_GGUF[kind]}'} | {chat(kind, paths[kind]['app'])} |"
        )


def rows_of_wrappers() -> Iterator[str]:
    """A line per model that reads images too; the rest of what is tested of them is the same for all."""
    measured = json.loads(GPU.read_text(encoding="utf-8"))["models"]
    yield "| `model_type` | train on a GPU |\n|---|---|"
    for kind in sorted(WRAPPERS):
        yield f"| {kind} | {on_a_gpu(kind, measured)} |"


def on_a_cpu(kind: str) -> str:
    """Whether a test has trained it, and by what it is trained."""
    by = "Unsloth" if kind in UNSLOTH else "transformers"
    return f"{by}" if kind in UNSLOTH or kind in PLAIN else f"{by}, not tested"


def on_a_gpu(kind: str, measured: dict[str, dict[str, float]]) -> str:
    """What benchmarks.gpu_models found."""
    found = measured.get(kind)
    if found is None:
        return "not run"
    if "error" in found:
        return f"**no**: {str(found['error']).partition('.')[0]}"
    right = found["gradient"] < TOLERANCE * found["rounding_gradient"]
    packed = f", packed {found['packed']:.1%}" if "packed" in found else ""
    says = f"gradient {found['gradient']:.1%} (rounding {found['rounding_gradient']:.1%}){packed}"
    return says if right else f"**no**: {says}"


def chat(kind: str, app: str) -> str:
    """The chat's engines that take its adapters; why not, where the reference engine does not."""
    if app != "yes":
        return app
    if kind in STACKED:
        return "transformers; llama.cpp without adapters on experts" if kind in FAMILIES else "transformers"
    return "both" if kind in FAMILIES else "transformers"


def filled(page: str) -> str:
    """The page with its tables made anew."""
    page = with_part(page, START, END, "\n".join(rows()))
    return with_part(page, WRAPPERS_START, WRAPPERS_END, "\n".join(rows_of_wrappers()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        from tests.llm.whole_path import path_of

        found = json.loads(PATHS.read_text(encoding="utf-8")) if sys.argv[2:] else {}
        write_json(PATHS, found | {kind: path_of(kind) for kind in sys.argv[2:] or ARCHITECTURES})
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
