"""GGUF's number formats: which tensor gets which, and llama.cpp's own code that computes them."""

from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quant_shape_to_byte_shape

from abctune.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

F16, F32 = GGMLQuantizationType.F16, GGMLQuantizationType.F32
Q8_0, Q5_0 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q5_0
Q4_K, Q5_K, Q6_K = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K
# What llama.cpp takes instead where a row is not a multiple of the format's block of 256 (SmolLM2's 576 is not).
FALLBACK = {Q4_K: Q5_0, Q6_K: Q8_0, Q5_K: Q8_0}
FINER = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight")


def type_of(name: str, shape: tuple[int, ...], fmt: str, layers: int, tied: bool) -> GGMLQuantizationType:
    """The number format of a tensor.

    Args:
        name: GGUF's name of the tensor.
        shape: Its shape, rows first.
        fmt: `f16`, `q8_0` or `q4_k_m`.
        layers: Number of blocks of the model.
        tied: Whether the token embedding is the output matrix too.
    """
    if len(shape) == 1:  # norms and rotary factors: small, and they scale everything
        return F32
    wanted = {"f16": F16, "q8_0": Q8_0, "q4_k_m": _q4_k_m(name, layers, tied)}[fmt]
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else FALLBACK.get(wanted, F16)


def _q4_k_m(name: str, layers: int, tied: bool) -> GGMLQuantizationType:
    """llama.cpp's mixture Q4_K_M for Llama models: more bits where errors cost the most.

    An eighth of the blocks at either end and every third between them get 6 bits for `attn_v` and `ffn_down`,
    and so does the output matrix. `attn_v` of a 70B model, which eight heads share, gets 5 instead of 4.
    """
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return Q6_K
    if not (found := FINER.fullmatch(name)):
        return Q4_K
    index, eighth = int(found[1]), layers // 8
    if index < eighth or index >= 7 * layers // 8 or (index - eighth) % 3 == 2:
        return Q6_K
    return Q5_K if found[2] == "attn_v" and layers == 80 else Q4_K


def byte_shape(shape: tuple[int, ...], kind: GGMLQuantizationType) -> tuple[int, ...]:
    """The shape of `encode`'s result, for the file's table of contents."""
    return shape if kind in (F16, F32) else quant_shape_to_byte_shape(shape, kind)


def encode(weight: np.ndarray, kind: GGMLQuantizationType, threads: int) -> np.ndarray:
    """A float32 tensor in a number format, blocks as bytes."""
    if kind in (F16, F32):
        return weight.astype(np.float16 if kind == F16 else np.float32)
    whole = byte_shape(weight.shape, kind)
    weight = np.ascontiguousarray(weight, dtype=np.float32).reshape(
        -1, weight.shape[-1]
    )  # experts are stacked
    encoded = np.empty(byte_shape(weight.shape, kind), dtype=np.uint8)
    rows = np.array_split(np.arange(len(weight)), threads)
    quantize = partial(_quantize_rows, weight, encoded, kind)
    with ThreadPoolExecutor(threads) as pool:  # ctypes releases the interpreter's lock
        list(pool.map(quantize, [part for part in rows if len(part)]))
    return encoded.reshape(whole)


def _quantize_rows(
    weight: np.ndarray, encoded: np.ndarray, kind: GGMLQuantizationType, rows: np.ndarray
) -> None:
    count, columns = len(rows), weight.shape[1]
    source, target = weight[rows[0] : rows[-1] + 1], encoded[rows[0] : rows[-1] + 1]
    written = _quantizer()(int(kind), source.ctypes.data, target.ctypes.data, 0, count, columns, None)
    if written != target.nbytes:
        raise RuntimeError(f"llama.cpp wrote {written} bytes of {kind.name} instead of {target.nbytes}")


@cache
def _quantizer() -> Callable[..., int]:
    """llama.cpp's `ggml_quantize_chunk`, which xllamacpp's library carries but has no Python function for."""
    from xllamacpp import xllamacpp

    try:
        function = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    except AttributeError:
        raise UserError(
            "this build of xllamacpp does not offer llama.cpp's quantizer; export f16 and run llama-quantize on it"
        ) from None
    whole = ctypes.c_int64
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, whole, whole, whole, ctypes.c_void_p]
    function.restype = ctypes.c_size_t
    return function
