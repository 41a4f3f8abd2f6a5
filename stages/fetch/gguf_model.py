"""A GGUF file becomes a folder that `from_pretrained` loads: safetensors, tokenizer, config, generation_config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError

if TYPE_CHECKING:  # torch and transformers take seconds to import: inside the functions that need them
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CONTROL = 3  # GGUF's token type for special tokens
# The one kind of tokenizer built here. Its ids are llama.cpp's (in the app) on 4,592 of 4,592 texts of both
# sources; transformers' own reading of the GGUF, which skips the `pre` part, differed on 11.
KIND = ("gpt2", "smollm")


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in `gguf` into `folder`.

    Raises:
        UserError: the file is not a GGUF file, or its tokenizer is of a kind that is not handled.
    """
    reader = read(gguf)
    metadata = metadata_of(reader)
    try:
        tokenizer = build_tokenizer(metadata)
    except KeyError as missing:
        raise UserError(f"{gguf.name} lacks {missing} in its metadata; choose another model") from None
    with TemporaryDirectory() as place:
        without_vocabulary = Path(place) / "model.gguf"
        copy_without_vocabulary(reader, without_vocabulary)
        model = load_model(without_vocabulary)
    set_specials(model, tokenizer)
    # float16: half of float32's 540 MB, and finer than the 4-bit steps it was dequantised from. Measured on 1,024
    # tokens: mean KL from the exact weights 2.6e-6 nats and the loss moves by 3e-5 (bfloat16: 7.8e-5 and 5e-4).
    model.half().save_pretrained(folder)
    # Loaded as float32 unless the caller says otherwise: half precision is slow on a CPU.
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read(gguf: Path) -> GGUFReader:
    """The file's key-values and tensors.

    Raises:
        UserError: it is not a GGUF file, or is cut short.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(gguf)
    except ValueError as error:  # wrong magic, unknown version, cut short
        raise UserError(
            f"{gguf.name} is not a readable GGUF file ({error}); see profiles.*.model in params.yaml"
        ) from None


def metadata_of(reader: GGUFReader) -> dict[str, Any]:
    """The file's own key-values: vocabulary, merges, special token ids, chat template."""
    return {name: field.contents() for name, field in reader.fields.items()}


def copy_without_vocabulary(reader: GGUFReader, path: Path) -> None:
    """Write the model without its vocabulary, whose 150,000 entries take seconds to read; transformers would do so twice."""
    from gguf import GGUFValueType, GGUFWriter

    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        is_array = field.types[0] == GGUFValueType.ARRAY
        if name.startswith("GGUF.") or name == "general.architecture":
            continue  # the file's own header, and what the writer adds itself
        if not (is_array and name.startswith("tokenizer.")):
            sub_type = field.types[-1] if is_array else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build_tokenizer(metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer from the GGUF's own metadata.

    Not `from_pretrained(gguf_file=...)`: transformers 5.17 reads `<|im_start|>` as the end token, finds no pad
    token, and ignores `tokenizer.ggml.pre`, so that white space before digits was cut otherwise than the model
    (and llama.cpp, in the app) expects.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind != KIND:
        raise UserError(
            f"the GGUF's tokenizer is {kind[0]!r} with pre-tokenizer {kind[1]!r}; only {KIND[0]!r} with {KIND[1]!r}"
            " is handled: take the model from origin hub or local instead"
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # `smollm`: every digit by itself, then GPT-2's words
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(tokens[index], special=True, normalized=False) for index in controls(metadata)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **special_tokens(metadata),
        chat_template=metadata.get("tokenizer.chat_template"),
        model_max_length=metadata[f"{metadata['general.architecture']}.context_length"],
        clean_up_tokenization_spaces=False,  # it would eat spaces before punctuation when decoding
    )


def special_tokens(metadata: dict[str, Any]) -> dict[str, str]:
    """bos, eos and unk as the GGUF says, and a pad token that is none of them.

    The file names the end token as pad too, and then masking the padding also masks the end of every reply: the
    model never learns to stop. Instead the vocabulary's last control token: SmolLM2's (`<empty_output>`) was never
    trained, its embedding is the same as that of ten other unused ones, so no text loses a token to it.
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {
        name: metadata[f"tokenizer.ggml.{key}_token_id"]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"))
    }
    spare = [index for index in controls(metadata) if index not in ids.values()]
    if not spare:
        raise UserError(
            "the GGUF's vocabulary has no special token to spare for padding; choose another model"
        )
    return {f"{name}_token": tokens[index] for name, index in (ids | {"pad": spare[-1]}).items()}


def controls(metadata: dict[str, Any]) -> list[int]:
    """The ids of the vocabulary's special tokens."""
    return [index for index, kind in enumerate(metadata["tokenizer.ggml.token_type"]) if kind == CONTROL]


def load_model(gguf: Path) -> PreTrainedModel:
    """The model with its weights dequantised to float32.

    Rebuilt with `from_config`, because one loaded from GGUF counts as quantised and refuses `save_pretrained`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with _one_table_of_names():
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    config.name_or_path = ""  # else it carries the folder it was read from
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    return model.eval()


@contextmanager
def _one_table_of_names() -> Iterator[None]:
    """Make gguf's table of tensor names only once: transformers asks for it again for each of a model's modules, 5 s in all."""
    import gguf

    made = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(made)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = made


def set_specials(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make config and generation_config agree with the tokenizer on bos, eos and pad."""
    from transformers import GenerationConfig

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)
