"""An exported file says what its adapter says, or it is not published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import abctune
from abctune.core.errors import UserError
from abctune.core.files import read_table
from abctune.core.records import ExportRecord, read_record
from abctune.llm import gguf_families
from app.engines.choose import gguf_of_base
from stages.export import gguf_file, gguf_tokenizer, write
from stages.export.check import TOLERANCE
from stages.export.quantize import encode, type_of
from tests import small
from tests.export.conftest import LLAMA_3, SHAPE

KINDS = GGMLQuantizationType


@pytest.mark.parametrize("fmt", list(TOLERANCE))
def test_each_format_says_what_the_adapter_says(project, fmt):
    record = write.export("B", fmt, *inputs())
    print(f"{fmt}: mean KL {record.mean_kl:.2g} nats of at most {record.tolerance}")
    assert record.positions > 20 and -1e-6 < record.mean_kl < TOLERANCE[fmt]
    assert record.file_loss == pytest.approx(record.adapter_loss, abs=0.3)
    written = read_record(Path(f"models/exported/B/{fmt}/check.json"), ExportRecord, "export@B-" + fmt)
    assert written == record.model_copy(update={"abctune": abctune.__version__})


@pytest.mark.parametrize("project", ["tied"], indirect=True)
@pytest.mark.parametrize("setting", ["use_rslora", "use_dora"])
def test_an_adapter_of_another_kind_says_the_same_in_its_file(setting, project):
    base = AutoModelForCausalLM.from_pretrained("models/base")
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **{setting: True})
    get_peft_model(base, lora).save_pretrained("models/B")
    record = write.export("B", "f16", *inputs())
    assert -1e-6 < record.mean_kl < TOLERANCE["f16"]
    of_base = write.export("base", "f16", *inputs()).file_loss
    assert abs(record.file_loss - record.adapter_loss) < abs(record.file_loss - of_base) / 3


@pytest.mark.parametrize("project", ["tied"], indirect=True)
def test_the_base_as_gguf_is_the_base_and_where_the_chat_demo_looks(project):
    record = write.export("base", "q8_0", *inputs())
    assert gguf_of_base(Path("models/base")) == Path("models/exported/base/q8_0/base.q8_0.gguf")
    # Without an adapter: what the file says is what the base says, and not what B says.
    of_b = write.export("B", "f16", *inputs()).file_loss
    assert abs(record.file_loss - record.adapter_loss) < abs(of_b - record.adapter_loss) / 3


def test_the_f16_file_read_by_transformers_is_the_adapter_too(project):
    """Not by the stage's own check: another program's reader, on other tokens."""
    write.export("B", "f16", *inputs())
    file = project.root / "models/exported/B/f16/B.f16.gguf"
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    tied = AutoConfig.from_pretrained(project.root / "models/base").tie_word_embeddings
    assert ("output.weight" in tensors) is not tied
    if "rope_freqs.weight" in tensors:
        pytest.skip("transformers reads no rotary factors from a GGUF")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(project.root / "models/base", dtype=torch.float32)
    adapter = PeftModel.from_pretrained(base, project.root / "models/B")
    ids = torch.randint(4, 260, (2, 60), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected, found = adapter(input_ids=ids).logits, read(input_ids=ids).logits
    assert (found - expected).abs().max() < 0.02 * expected.std()


def test_a_file_with_one_mistake_is_not_published(project, monkeypatch):
    monkeypatch.setattr(gguf_families, "interleaved", lambda weight, heads: weight)
    with pytest.raises(UserError, match=r"B as f16 is not the adapter: mean KL .* nothing is published"):
        write.export("B", "f16", *inputs())
    assert not (project.root / "models/exported/B/f16").exists()


def inputs():
    return (
        read_table(Path("data/split/B/val.parquet"), made_by="split@B"),
        {"chat_template": "model"},
        "none",
    )


@pytest.mark.parametrize("project", ["tied"], indirect=True)
def test_a_model_that_is_not_handled_is_refused_before_work(project):
    config = json.loads((project.root / "models/base/config.json").read_text())
    config |= {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}
    (project.root / "models/base/config.json").write_text(json.dumps(config))
    done = project.stage("export", "B", "q8_0", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: models/base/config.json: no GGUF is written for architecture gpt_oss; put merged_16bit"
    )


@pytest.mark.parametrize("project", ["tied"], indirect=True)
def test_dvcs_name_of_the_stage_says_what_to_export(project):
    project.set(profiles__tiny__model__license="llama3.2")
    (project.root / "models/base/LICENSE.txt").write_text("the base's license")
    done = project.stage("export", DVC_STAGE="export@B-merged_16bit")
    assert done.stdout.splitlines()[-1].startswith("B merged_16bit: ")
    assert {"model.safetensors", "tokenizer.json", "config.json", "check.json"} <= {
        path.name for path in (project.root / "models/exported/B/merged_16bit").iterdir()
    }
    exported = project.root / "models/exported/B/merged_16bit"  # with what the base's license asks for
    assert (exported / "LICENSE.txt").read_text() == "the base's license"
    assert (
        (exported / "NOTICE")
        .read_text()
        .startswith("Llama 3.2 is licensed under the Llama 3.2 Community License")
    )


def test_an_unknown_format_is_one_line(ready_to_train):
    done = ready_to_train.stage("export", "B", "q5_1", check=False)
    assert done.stderr == (
        "error: no format 'q5_1' to export to; there are merged_16bit, f16, q8_0, q4_k_m\n"
    )


def test_a_tokenizer_that_cuts_text_in_an_unknown_way_is_refused():
    tokenizer = json.loads(small.chatml_tokenizer().backend_tokenizer.to_str())
    assert gguf_tokenizer.pre_tokenizer(tokenizer) == "gpt-2"
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(UserError, match="no GGUF is written for this tokenizer"):
        gguf_tokenizer.pre_tokenizer(tokenizer)


def test_the_rotary_factors_are_what_transformers_multiplies_by():
    config = LlamaConfig(**SHAPE, max_position_embeddings=512, rope_parameters=LLAMA_3)
    plain = LlamaConfig(
        **SHAPE, max_position_embeddings=512, rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"}
    )
    ratio = LlamaRotaryEmbedding(plain).inv_freq / LlamaRotaryEmbedding(config).inv_freq
    torch.testing.assert_close(gguf_file.rope_factors(config.to_dict()), ratio, rtol=1e-5, atol=0)
    assert gguf_file.rope_factors(plain.to_dict()) is None


def test_q4_k_m_spends_its_bits_where_llama_cpp_does():
    """The layers of Llama-3-8B's Q4_K_M files, by llama.cpp's rule."""
    finer = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for name in ("attn_v", "ffn_down"):
        kinds = [
            type_of(f"blk.{layer}.{name}.weight", (1024, 4096), "q4_k_m", 32, False) for layer in range(32)
        ]
        assert kinds == [KINDS.Q6_K if layer in finer else KINDS.Q4_K for layer in range(32)]
    assert type_of("output.weight", (128256, 4096), "q4_k_m", 32, False) == KINDS.Q6_K
    assert type_of("token_embd.weight", (128256, 4096), "q4_k_m", 32, False) == KINDS.Q4_K
    assert type_of("token_embd.weight", (128256, 4096), "q4_k_m", 32, True) == KINDS.Q6_K
    assert type_of("blk.5.attn_norm.weight", (4096,), "q4_k_m", 32, True) == KINDS.F32
    # SmolLM2's rows of 576 are no multiple of 256.
    assert type_of("blk.5.attn_q.weight", (576, 576), "q4_k_m", 30, True) == KINDS.Q5_0


def test_the_blocks_are_the_same_by_any_number_of_threads():
    weight = torch.randn(7, 256, generator=torch.Generator().manual_seed(0)).numpy()
    for kind in (KINDS.Q8_0, KINDS.Q4_K, KINDS.Q6_K):
        assert (encode(weight, kind, threads=1) == encode(weight, kind, threads=3)).all()
